// Packing: copies a block of A or B into micropanels that the microkernel reads in order.
//
// A panel holds `width` rows of A (or columns of B) side by side for every k:
//   dst[k * width + i] = src[i * across + k * along]
// so A and B need one function. When `across` is 1 the source runs along the panel and rows are
// copied; when `along` is 1 it runs along k, and W x W blocks are transposed in registers. Lanes
// beyond `count` are zero, so that edge panels can be read whole.

MLP_NAMESPACE_BEGIN

template <class T>
void pack_along_panel(const T* src, int64_t along, int64_t count, int64_t width, int64_t kc,
                      T* dst) {
  using V = Vec<T>;
  for (int64_t k = 0; k < kc; ++k, src += along, dst += width) {
    for (int64_t i = 0; i < width; i += V::kWidth) {
      V::load(src + i, V::first(count - i)).store(dst + i, V::first(width - i));
    }
  }
}

// W x W elements, transposed in registers: `rows` of them (the others zero), `steps` values of k.
// The loops have constant bounds so that the block stays in registers; a variable one would spill
// it.
template <class T>
MLP_INLINE void transpose_block(const T* src, int64_t across, int rows, int64_t steps,
                                typename Vec<T>::Mask lanes, int64_t width, T* dst) {
  using V = Vec<T>;
  constexpr int kW = V::kWidth;
  const auto columns = V::first(steps);
  V block[kW];
  MLP_UNROLL
  for (int r = 0; r < kW; ++r) block[r] = r < rows ? V::load(src + r * across, columns) : V(T(0));
  transpose(block);
  MLP_UNROLL
  for (int s = 0; s < kW; ++s) {
    if (s < steps) block[s].store(dst + s * width, lanes);
  }
}

template <class T>
void pack_transposed(const T* src, int64_t across, int64_t count, int64_t width, int64_t kc,
                     T* dst) {
  using V = Vec<T>;
  constexpr int kW = V::kWidth;
  for (int64_t i = 0; i < width; i += kW) {
    const int rows = static_cast<int>(std::min<int64_t>(kW, std::max<int64_t>(0, count - i)));
    const auto lanes = V::first(width - i);
    int64_t k = 0;
    if (rows == kW) {
      for (; k + kW <= kc; k += kW) {
        transpose_block(src + i * across + k, across, kW, kW, lanes, width, dst + k * width + i);
      }
    }
    for (; k < kc; k += kW) {
      transpose_block(src + i * across + k, across, rows, std::min<int64_t>(kW, kc - k), lanes,
                      width, dst + k * width + i);
    }
  }
}

template <class T>
void pack_strided(const T* src, int64_t across, int64_t along, int64_t count, int64_t width,
                  int64_t kc, T* dst) {
  for (int64_t k = 0; k < kc; ++k) {
    for (int64_t i = 0; i < width; ++i) {
      dst[k * width + i] = i < count ? src[i * across + k * along] : T(0);
    }
  }
}

template <class T>
constexpr int64_t kPanelWidth = Tile<T>::kPanelVectors * Vec<T>::kWidth;

// Rows that lie a multiple of 4 KiB apart fall into one set of L1, which holds 8 lines: more of
// them at a time evict each other between two uses (M=256, N=16, K=1024 on Zen 4: 48 % of the peak
// in tiles of 14 rows read in place, 83 % in tiles of 7).
constexpr int64_t kMostRowsOfASet = 7;

template <class T>
bool rows_share_a_set(int64_t stride) {
  return stride != 0 && stride * int64_t(sizeof(T)) % 4096 == 0;
}

// `most` or less, so that n falls into blocks of about the same length.
inline int64_t even_block(int64_t n, int64_t most) {
  const int64_t blocks = (n + most - 1) / most;
  return (n + blocks - 1) / blocks;
}

// n cut into as few parts of `most` or less as will do, their lengths at most 1 apart: of 256 rows
// 10 tiles of 13 and 9 of 14, where 18 of 14 would leave one of 4, at half the rate.
struct EvenCut {
  int64_t length, split;  // of the parts that begin before `split`; beyond, 1 less

  EvenCut(int64_t n, int64_t most) {
    const int64_t parts = (n + most - 1) / most;
    length = (n + parts - 1) / parts;
    split = n - (length * parts - n) * (length - 1);
  }
  int64_t at(int64_t begin) const { return begin < split ? length : length - 1; }
};

// KC. A small C is in L1 when the next block adds to it, and of few rows little is added, so their
// chains are kept short: with KC = 384 M=13 N=16 K=384 was off by 2.1 eps rms on AVX-512, 2.3 times
// MKL's error, and with KC = 256 M=8 N=1000 K=256 by 1.7 on AVX2, 2.2 times (Sapphire Rapids).
template <class T>
int64_t block_depth(Range m, Range n, const Blocks& blocks) {
  constexpr int64_t kSmall = 16 * 1024 / sizeof(T), kFewRows = 12, kShortKC = 128;
  const bool is_small = m.size() * n.size() <= kSmall || m.size() <= kFewRows;
  return is_small ? std::min(kShortKC, blocks.kc) : blocks.kc;
}

// One panel: `count` <= `width` rows of A or columns of B, over kc values of k.
template <class T>
void pack_panel(const T* src, int64_t across, int64_t along, int64_t count, int64_t width,
                int64_t kc, T* dst) {
  if (across == 1) return pack_along_panel(src, along, count, width, kc, dst);
  if (along == 1) return pack_transposed(src, across, count, width, kc, dst);
  return pack_strided(src, across, along, count, width, kc, dst);
}

MLP_NAMESPACE_END
