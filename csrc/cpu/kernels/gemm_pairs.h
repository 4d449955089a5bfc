// The product of bfloat16 matrices by dot products of pairs, sums in float32, each product rounded
// once.
//
// The loops of gemm.h, with two differences. Both operands are always packed, since k has to come
// in pairs. And k is not cut: a sum stays in its register from the first product to the last, so
// that C can be bfloat16; instead the blocks of A and B get lower as K grows, which bounds the
// workspace and K (kMostPairDepth).

MLP_NAMESPACE_BEGIN

// 14 x 2 accumulators + 2 of B + 1 broadcast of A = 31 of 32 registers, as for float32.
constexpr int kPairRows = 14, kPairVectors = 2;
constexpr int64_t kPairPanel = kPairVectors * Pairs::kCount;
// Half a MiB of A and of B: together they fit in the L2 of Zen 4 (1 MiB).
constexpr int64_t kPairBlock = 128 * 1024;  // pairs
constexpr int64_t kMostPairRows = 14 * 16, kMostPairColumns = 1024;
constexpr int64_t kMostPairDepth = 2 * kPairBlock / kPairPanel;

struct PairTile {
  const GemmArgs<BFloat16>& g;
  int64_t m, n, mr, nr;
};

// c = f(acc + bias) for f = none or ReLU, or acc where the saved output is positive.
template <int MR, int NV>
MLP_INLINE void store_pair_tile(Vec<float> (&acc)[MR][NV], const PairTile& t) {
  using V = Vec<float>;
  const GemmArgs<BFloat16>& g = t.g;
  const bool relu = fits_in_registers(g) && g.activation == Activation::relu;
  MLP_UNROLL
  for (int j = 0; j < NV; ++j) {
    const int64_t n = t.n + j * V::kWidth;
    const auto lanes = V::first(t.nr - j * V::kWidth);
    const V bias = g.bias ? V::load(g.bias + n, lanes) : V(0.0f);
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      V x = acc[i][j];
      if (g.bias) x = x + bias;
      if (relu) {
        x = g.saved ? Relu::backward(x, V::load(g.saved + (t.m + i) * g.ld_saved + n, lanes))
                    : Relu::forward(x);
      }
      x.store(g.c + (t.m + i) * g.ldc + n, lanes);
    }
  }
}

template <int MR, int NV>
void pair_microkernel(int64_t kc, const Pair* a, const Pair* b, const PairTile& t) {
  Vec<float> acc[MR][NV];
  MLP_UNROLL
  for (int i = 0; i < MR; ++i) {
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) acc[i][j] = Vec<float>(0.0f);
  }
  for (int64_t k = 0; k < kc; k += 2, a += MR, b += NV * Pairs::kCount) {
    Pairs row[NV];
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) row[j] = Pairs::load(b + j * Pairs::kCount);
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      const Pairs element = Pairs::broadcast(a + i);
      MLP_UNROLL
      for (int j = 0; j < NV; ++j) acc[i][j] = dot2(element, row[j], acc[i][j]);
    }
  }
  store_pair_tile<MR, NV>(acc, t);
}

using PairMicrokernel = void (*)(int64_t, const Pair*, const Pair*, const PairTile&);

struct PairMicrokernelTable {
  PairMicrokernel instances[kPairRows][kPairVectors];

  template <int... i>
  constexpr void fill(std::integer_sequence<int, i...>) {
    ((instances[i][0] = pair_microkernel<i + 1, 1>, instances[i][1] = pair_microkernel<i + 1, 2>),
     ...);
  }
  constexpr PairMicrokernelTable() : instances() {
    fill(std::make_integer_sequence<int, kPairRows>());
  }
};
constexpr PairMicrokernelTable kPairMicrokernels{};

// Rows or columns of a block that hold kPairBlock pairs, a multiple of `unit`.
inline int64_t pair_block(int64_t pairs_deep, int64_t unit, int64_t most) {
  return std::min(most, std::max(unit, kPairBlock / pairs_deep / unit * unit));
}

inline void gemm_pairs(const GemmArgs<BFloat16>& g, Range m, Range n, const Blocks&,
                       BFloat16* workspace) {
  if (m.size() <= 0 || n.size() <= 0) return;
  const int64_t deep = (g.K + 1) / 2;
  const int64_t mc_most = pair_block(deep, kPairRows, kMostPairRows);
  const int64_t nc_most = pair_block(deep, kPairPanel, kMostPairColumns);
  Pair* const a_pack = reinterpret_cast<Pair*>(workspace);
  Pair* const b_pack = a_pack + kPairBlock;
  for (int64_t jc = n.begin; jc < n.end; jc += nc_most) {
    const int64_t nc = std::min(nc_most, n.end - jc);
    for (int64_t j = 0; j < nc; j += kPairPanel) {
      const int64_t nr = std::min(kPairPanel, nc - j);
      const int64_t width = (nr + Pairs::kCount - 1) / Pairs::kCount * Pairs::kCount;
      pack_pairs(g.b + (jc + j) * g.b_col, g.b_col, g.b_row, nr, width, g.K, b_pack + j * deep);
    }
    for (int64_t ic = m.begin; ic < m.end; ic += mc_most) {
      const int64_t mc = std::min(mc_most, m.end - ic);
      for (int64_t i = 0; i < mc; i += kPairRows) {
        const int64_t mr = std::min<int64_t>(kPairRows, mc - i);
        pack_pairs(g.a + (ic + i) * g.a_row, g.a_row, g.a_col, mr, mr, g.K, a_pack + i * deep);
      }
      for (int64_t j = 0; j < nc; j += kPairPanel) {
        const int64_t nr = std::min(kPairPanel, nc - j);
        const int64_t vectors = (nr + Pairs::kCount - 1) / Pairs::kCount;
        for (int64_t i = 0; i < mc; i += kPairRows) {
          const PairTile t{g, ic + i, jc + j, std::min<int64_t>(kPairRows, mc - i), nr};
          kPairMicrokernels.instances[t.mr - 1][vectors - 1](g.K, a_pack + i * deep,
                                                             b_pack + j * deep, t);
          if (!fits_in_registers(g)) finish_tile(g, t.m, t.n, t.mr, t.nr);
        }
      }
    }
  }
}

MLP_NAMESPACE_END
