// The register tile: C[mr, nr] (+)= A[mr, kc] B[kc, nr], by broadcasting elements of A against row
// vectors of B.
//
//               B: kc rows of nv vectors
//               +----+----+
//   a(i, k) --> | fma on mr x nv accumulators, one k at a time
//               +----+----+
//
// Every row count up to MR and vector count up to the panel's has an instance, so edges run the
// same code with fewer accumulators. A packed B is padded to whole vectors; only where B lies
// unpacked and its last vector is cut are loads masked (an instance of its own, since masked loads
// of whole vectors cost 3 % at 512^3, AVX-512 on Sapphire Rapids). The sums of a K block start
// from zero and are added to C once, which keeps the rounding error that of blocks of KC, not of
// all K. The register budget stands beside each ISA's Tile.

MLP_NAMESPACE_BEGIN

// How the operands of one tile lie. A packed micropanel has a_row = 1 and a_col = its row count.
template <class T>
struct TileOperands {
  int64_t kc;
  const T* a;
  int64_t a_row, a_col;
  const T* b;
  int64_t b_row;
};

// Where the tile goes and what is done on the way; all but `c` optional.
template <class T>
struct TileResult {
  T* c;
  int64_t ldc;
  int64_t nr;
  bool accumulate;  // add to what C holds: a later K block
  bool relu;
  const T* bias;
  const T* mask;  // ReLU's saved output: backward
  int64_t ld_mask;
};

// Vector j of a row of NV, of which only the last can be cut, to `tail`.
template <int NV, class T>
MLP_INLINE Vec<T> load_of_tile(const T* row, int j, bool is_cut, typename Vec<T>::Mask tail) {
  return load_cut(row + j * Vec<T>::kWidth, is_cut && j == NV - 1, tail);
}

template <class T, int MR, int NV>
MLP_INLINE void store_tile(Vec<T> (&acc)[MR][NV], const TileResult<T>& r) {
  using V = Vec<T>;
  const auto tail = V::first(r.nr - (NV - 1) * V::kWidth);
  if (r.accumulate) {
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      MLP_UNROLL
      for (int j = 0; j < NV; ++j)
        acc[i][j] = acc[i][j] + load_of_tile<NV>(r.c + i * r.ldc, j, true, tail);
    }
  }
  if (r.bias) {
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) {
      const V bias = load_of_tile<NV>(r.bias, j, true, tail);
      MLP_UNROLL
      for (int i = 0; i < MR; ++i) acc[i][j] = acc[i][j] + bias;
    }
  }
  if (r.relu) {
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      MLP_UNROLL
      for (int j = 0; j < NV; ++j) acc[i][j] = Relu::forward(acc[i][j]);
    }
  }
  if (r.mask) {
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      MLP_UNROLL
      for (int j = 0; j < NV; ++j) {
        acc[i][j] =
            Relu::backward(acc[i][j], load_of_tile<NV>(r.mask + i * r.ld_mask, j, true, tail));
      }
    }
  }
  MLP_UNROLL
  for (int i = 0; i < MR; ++i) {
    T* const row = r.c + i * r.ldc;
    MLP_UNROLL
    for (int j = 0; j < NV - 1; ++j) acc[i][j].store(row + j * V::kWidth);
    acc[i][NV - 1].store(row + (NV - 1) * V::kWidth, tail);
  }
}

// acc += one column of A times one row of B, its last vector masked by `tail` if kCut.
template <class T, int MR, int NV, bool kCut>
MLP_INLINE void rank_one_update(Vec<T> (&acc)[MR][NV], const T* a, int64_t a_row, const T* b,
                                typename Vec<T>::Mask tail) {
  using V = Vec<T>;
  V row[NV];
  MLP_UNROLL
  for (int j = 0; j < NV; ++j) {
    row[j] = load_of_tile<NV>(b, j, kCut, tail);
    if constexpr (MR > 1) keep_in_register(row[j]);
  }
  MLP_UNROLL
  for (int i = 0; i < MR; ++i) {
    const V element(a[i * a_row]);
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) acc[i][j] = fma(element, row[j], acc[i][j]);
  }
}

// acc = A[MR, kc] B[kc, nr].
template <class T, int MR, int NV, bool kPackedA, bool kCut>
MLP_INLINE void accumulate_tile(const TileOperands<T>& t, typename Vec<T>::Mask tail,
                                Vec<T> (&acc)[MR][NV]) {
  using V = Vec<T>;
  // A tile that leaves half the registers free sums even and odd k apart: twice the independent
  // chains, half their length.
  constexpr int kChains = 2 * MR * NV + NV + 1 <= Tile<T>::kRegisters ? 2 : 1;
  V sums[kChains][MR][NV];
  MLP_UNROLL
  for (int c = 0; c < kChains; ++c) {
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      MLP_UNROLL
      for (int j = 0; j < NV; ++j) sums[c][i][j] = V(T(0));
    }
  }
  const T* a = t.a;
  const T* b = t.b;
  const int64_t a_row = kPackedA ? 1 : t.a_row;
  const int64_t a_col = kPackedA ? MR : t.a_col;
  int64_t k = 0;
  // Counting and stepping compete with FMAs for ports on Intel's: 1 to 4 % (Sapphire Rapids).
  MLP_UNROLL_BY_4
  for (; k + kChains <= t.kc; k += kChains, a += kChains * a_col, b += kChains * t.b_row) {
    MLP_UNROLL
    for (int c = 0; c < kChains; ++c) {
      rank_one_update<T, MR, NV, kCut>(sums[c], a + c * a_col, a_row, b + c * t.b_row, tail);
    }
  }
  if (k < t.kc) rank_one_update<T, MR, NV, kCut>(sums[0], a, a_row, b, tail);
  MLP_UNROLL
  for (int i = 0; i < MR; ++i) {
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) {
      acc[i][j] = kChains == 2 ? sums[0][i][j] + sums[kChains - 1][i][j] : sums[0][i][j];
    }
  }
}

// Asks for the tile of C while its sums are being made: rows a page apart would miss L1, L2 and the
// TLB one after the other. Worth 4 % at 1024^3 (Zen 4, KC 256).
template <class T, int MR, int NV>
MLP_INLINE void prefetch_tile(const TileOperands<T>& t, const TileResult<T>& r) {
  constexpr int64_t kLeastDepth = 32;
  if (t.kc < kLeastDepth) return;
  MLP_UNROLL
  for (int i = 0; i < MR; ++i) {
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) {
      __builtin_prefetch(r.c + i * r.ldc + j * Vec<T>::kWidth, /*write*/ 1);
    }
    __builtin_prefetch(r.c + i * r.ldc + r.nr - 1, 1);
  }
}

template <class T, int MR, int NV, bool kPackedA, bool kCut>
void microkernel(const TileOperands<T>& t, const TileResult<T>& r) {
  Vec<T> acc[MR][NV];
  prefetch_tile<T, MR, NV>(t, r);
  const auto tail = Vec<T>::first(r.nr - (NV - 1) * Vec<T>::kWidth);
  accumulate_tile<T, MR, NV, kPackedA, kCut>(t, tail, acc);
  store_tile<T, MR, NV>(acc, r);
}

// The same product written as its transpose: C[nr, mr]. `columns` of the tile (its rows of C) are
// stored, W at a time, from W x W blocks transposed in registers; r.nr is the tile's row count, and
// bias and c run along it. For the forward pass alone: no mask. B is packed.
template <class T, int MR, int NV>
void microkernel_transposed(const TileOperands<T>& t, int64_t columns, const TileResult<T>& r) {
  using V = Vec<T>;
  constexpr int kW = V::kWidth;
  static_assert(MR <= kW, "a block holds the whole tile's rows");
  V acc[MR][NV];
  accumulate_tile<T, MR, NV, false, false>(t, V::first(kW), acc);
  MLP_UNROLL
  for (int j = 0; j < NV; ++j) {
    V block[kW];
    MLP_UNROLL
    for (int i = 0; i < kW; ++i) block[i] = i < MR ? acc[i < MR ? i : 0][j] : V(T(0));
    transpose(block);
    const int64_t rows = std::min<int64_t>(kW, columns - j * kW);
    TileResult<T> strip = r;
    strip.c = r.c + j * kW * r.ldc;
    // A loop, through memory: unrolled it would be 16 times the epilogue in each of 28 instances.
    MLP_KEEP_LOOP
    for (int64_t i = 0; i < rows; ++i, strip.c += r.ldc) {
      V row[1][1] = {{block[i]}};
      store_tile<T, 1, 1>(row, strip);
    }
  }
}

template <class T>
using Microkernel = void (*)(const TileOperands<T>&, const TileResult<T>&);
template <class T>
using TransposedMicrokernel = void (*)(const TileOperands<T>&, int64_t, const TileResult<T>&);

// instances[rows - 1][vectors - 1] of one of the microkernels above. A packed micropanel is seldom
// low (blocks are cut into tiles of about one height): below kLeastPackedRows it goes to the
// instance that reads A anywhere.
template <class T>
constexpr int kLeastPackedRows = Tile<T>::kRows / 2 + 1;

enum class TileKind { kPackedA, kUnpackedA, kCut, kTransposed };

template <class T, TileKind kKind>
struct MicrokernelTable {
  static constexpr int kRows = Tile<T>::kRows, kVectors = Tile<T>::kPanelVectors;
  static constexpr bool kIsTransposed = kKind == TileKind::kTransposed;
  using Entry = std::conditional_t<kIsTransposed, TransposedMicrokernel<T>, Microkernel<T>>;
  Entry instances[kRows][kVectors];

  template <int kRow, int... j>
  constexpr void fill_row(std::integer_sequence<int, j...>) {
    if constexpr (kIsTransposed) {
      ((instances[kRow][j] = microkernel_transposed<T, kRow + 1, j + 1>), ...);
    } else {
      constexpr bool kPacked = kKind == TileKind::kPackedA && kRow + 1 >= kLeastPackedRows<T>;
      constexpr bool kCut = kKind == TileKind::kCut;
      ((instances[kRow][j] = microkernel<T, kRow + 1, j + 1, kPacked, kCut>), ...);
    }
  }
  template <int... i>
  constexpr void fill(std::integer_sequence<int, i...>) {
    (fill_row<i>(std::make_integer_sequence<int, kVectors>()), ...);
  }
  constexpr MicrokernelTable() : instances() { fill(std::make_integer_sequence<int, kRows>()); }
};

template <class T, TileKind kKind>
constexpr MicrokernelTable<T, kKind> kMicrokernels{};

MLP_NAMESPACE_END
