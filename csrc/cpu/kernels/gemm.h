// The loops around the microkernel, for one thread's part of C.
//
//   for each NC columns          B block: KC x NC, stays in L2 / L3
//     for each KC of K           pack B if that pays
//       for each MC rows         A block: MC x KC, stays in L2; pack A if that pays
//         for each panel of B    KC x NR in L1, or streamed from L2
//           for each MR rows     the microkernel
//
// Packing is skipped where the operand is read too few times to earn it back, or already lies well:
//  - B must be packed when it runs along k (the forward product, B = W^T: the transposition); when
//    it runs along n it is packed if many rows read it from further away than L1;
//  - A is packed when its rows would share a set of L1, or when many panels of B reread it.

MLP_NAMESPACE_BEGIN

constexpr int64_t kL1Bytes = 32 * 1024;

// A B that runs along n is read in place for longer than one would think: its panel stays in L1
// while up to 255 rows read it (dX of 64 x 512 x 784 on Sapphire Rapids: 68 GFLOP/s packed, 77 in
// place on AVX2, 134 and 138 on AVX-512; of 1024 x 1000 x 1000 on AVX-512 151 and 131). Not so
// where its rows share a set of L1 (64 x 1024 x 1024: 116 and 100).
template <class T>
bool packs_b(const GemmArgs<T>& g, Range m, Range n) {
  if (g.b_col != 1) return true;
  const bool outgrows_l1 = n.size() * g.K * int64_t(sizeof(T)) > kL1Bytes;
  return outgrows_l1 && m.size() >= (rows_share_a_set<T>(g.b_row) ? 64 : 256);
}

// Rows of A that lie well are read in place at no loss (Zen 4: 85 to 93 % of the peak where packing
// gives 80 to 88 %, M=256, N=64 to 784), but each panel of B reads them again.
template <class T>
bool packs_a(const GemmArgs<T>& g, Range n) {
  constexpr int64_t kMostReadings = 16;
  if (n.size() <= kPanelWidth<T>) return false;
  if (g.a_row != 1 && g.a_col != 1) return true;
  const int64_t stride = g.a_col == 1 ? g.a_row : g.a_col;
  return rows_share_a_set<T>(stride) || n.size() > kMostReadings * kPanelWidth<T>;
}

// How `mc` rows fall into tiles.
template <class T>
EvenCut tiles_of(const GemmArgs<T>& g, int64_t mc, bool packed_a) {
  const bool sharing = !packed_a && g.a_col == 1 && rows_share_a_set<T>(g.a_row);
  return {mc, sharing ? std::min(kMostRowsOfASet, Tile<T>::kRows) : Tile<T>::kRows};
}

// The rows m .. m + mc of one block: every panel of B against every micropanel of A.
template <class T>
struct MacroKernel {
  const GemmArgs<T>& g;
  bool packed_a, packed_b, last;  // last: this K block completes the sums
  int64_t pc, kc;
  const T *a_pack, *b_pack;

  void run(int64_t m, int64_t mc, int64_t n, int64_t nc) const {
    constexpr int64_t kNR = kPanelWidth<T>;
    const EvenCut tiles = tiles_of(g, mc, packed_a);
    const T* b_panel = b_pack;
    for (int64_t j = 0; j < nc; j += kNR) {
      const int64_t nr = std::min(kNR, nc - j);
      const int64_t vectors = (nr + Vec<T>::kWidth - 1) / Vec<T>::kWidth;
      const T* b = packed_b ? b_panel : g.b + pc * g.b_row + (n + j);
      const int64_t b_row = packed_b ? vectors * Vec<T>::kWidth : g.b_row;
      int64_t i = 0;
      for (; i < tiles.split; i += tiles.length) {
        tile(m + i, tiles.length, a_pack + i * kc, n + j, nr, vectors, b, b_row);
      }
      for (; i < mc; i += tiles.length - 1) {
        tile(m + i, tiles.length - 1, a_pack + i * kc, n + j, nr, vectors, b, b_row);
      }
      b_panel += kc * vectors * Vec<T>::kWidth;
    }
  }

  void tile(int64_t m, int64_t mr, const T* a_panel, int64_t n, int64_t nr, int64_t vectors,
            const T* b, int64_t b_row) const {
    const bool in_registers = last && fits_in_registers(g);
    const bool relu = in_registers && g.activation == Activation::relu;
    TileResult<T> r;
    r.c = g.c + m * g.ldc + n;
    r.ldc = g.ldc;
    r.nr = nr;
    r.accumulate = pc > 0;
    r.relu = relu && !g.saved;
    r.bias = last && g.bias ? g.bias + n : nullptr;
    r.mask = relu && g.saved ? g.saved + m * g.ld_saved + n : nullptr;
    r.ld_mask = g.ld_saved;
    const bool is_cut = !packed_b && nr < vectors * Vec<T>::kWidth;
    if (packed_a && !is_cut) {
      const TileOperands<T> t{kc, a_panel, 1, mr, b, b_row};
      kMicrokernels<T, TileKind::kPackedA>.instances[mr - 1][vectors - 1](t, r);
    } else {
      TileOperands<T> t{kc, g.a + m * g.a_row + pc * g.a_col, g.a_row, g.a_col, b, b_row};
      if (packed_a) t.a = a_panel, t.a_row = 1, t.a_col = mr;
      const auto& kind = is_cut ? kMicrokernels<T, TileKind::kCut>.instances
                                : kMicrokernels<T, TileKind::kUnpackedA>.instances;
      kind[mr - 1][vectors - 1](t, r);
    }
    if (last && !in_registers) finish_tile(g, m, n, mr, nr);
  }
};

template <class T>
void pack_a_block(const GemmArgs<T>& g, int64_t m, int64_t mc, int64_t pc, int64_t kc, T* dst) {
  const EvenCut tiles = tiles_of(g, mc, /*packed_a=*/true);
  for (int64_t i = 0; i < mc; i += tiles.at(i)) {
    const int64_t mr = tiles.at(i);
    pack_panel(g.a + (m + i) * g.a_row + pc * g.a_col, g.a_row, g.a_col, mr, mr, kc, dst + i * kc);
  }
}

template <class T>
void pack_b_block(const GemmArgs<T>& g, int64_t n, int64_t nc, int64_t pc, int64_t kc, T* dst) {
  constexpr int64_t kNR = kPanelWidth<T>, kW = Vec<T>::kWidth;
  for (int64_t j = 0; j < nc; j += kNR) {
    const int64_t nr = std::min(kNR, nc - j);
    const int64_t width = (nr + kW - 1) / kW * kW;
    pack_panel(g.b + (n + j) * g.b_col + pc * g.b_row, g.b_col, g.b_row, nr, width, kc, dst);
    dst += kc * width;
  }
}

// MC. Of a short K so many rows that A's block stays in L1, if they make enough tiles for a panel
// of B (dW of 64 x 256 x 784, AVX2 on Sapphire Rapids: 81 GFLOP/s in 144 rows, 78 in all 256).
template <class T>
int64_t block_height(const Blocks& blocks, int64_t kc) {
  constexpr int64_t kLeastTiles = 8;
  const int64_t rows = blocks.l1 * 3 / 4 / kc / Tile<T>::kRows * Tile<T>::kRows;
  return rows >= kLeastTiles * Tile<T>::kRows ? std::min(rows, blocks.mc) : blocks.mc;
}

template <class T>
void gemm(const GemmArgs<T>& g, Range m, Range n, const Blocks& blocks, T* workspace) {
  if (m.size() <= 0 || n.size() <= 0) return;
  if (prefers_dot(g, m)) return gemm_dot(g, m, n);
  if (prefers_outer(g, m, n)) return gemm_outer(g, m, n);
  if constexpr (kHasSwapped<T>) {
    if (prefers_swapped(g, m, n, blocks)) return gemm_swapped(g, m, n, blocks, workspace);
  }
  const bool packed_a = packs_a(g, n), packed_b = packs_b(g, m, n);
  const int64_t even_kc = even_block(g.K, block_depth<T>(m, n, blocks));
  const int64_t most_mc = block_height<T>(blocks, even_kc);
  T* const a_pack = workspace;
  T* const b_pack = workspace + blocks.mc * blocks.kc;
  for (int64_t jc = n.begin; jc < n.end; jc += blocks.nc) {
    const int64_t nc = std::min(blocks.nc, n.end - jc);
    for (int64_t pc = 0; pc < g.K; pc += even_kc) {
      const int64_t kc = std::min(even_kc, g.K - pc);
      if (packed_b) pack_b_block(g, jc, nc, pc, kc, b_pack);
      for (int64_t ic = m.begin; ic < m.end; ic += most_mc) {
        const int64_t mc = std::min(most_mc, m.end - ic);
        if (packed_a) pack_a_block(g, ic, mc, pc, kc, a_pack);
        const MacroKernel<T> macro{g, packed_a, packed_b, pc + kc == g.K, pc, kc, a_pack, b_pack};
        macro.run(ic, mc, jc, nc);
      }
    }
  }
}

MLP_NAMESPACE_END
