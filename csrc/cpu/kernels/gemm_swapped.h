// The forward product with the operands' roles swapped: C^T = W X^T, for a batch smaller than the
// layer is wide. W is then the operand that is broadcast from, read where it lies, and the small X
// is the one that is packed (transposed); the tiles are turned round as they are stored. Where the
// usual order would spend 1 / M of its time on packing W, this spends 1 / N on packing X.
//
// W is packed after all where its rows would share a set of L1 (rows_share_a_set: 65 % of the peak
// against 82 % at M=256, N=K=1024 on Zen 4).

MLP_NAMESPACE_BEGIN

// A tile's rows have to fit a square block of vectors.
template <class T>
constexpr bool kHasSwapped = Tile<T>::kRows <= Vec<T>::kWidth;

template <class T>
bool prefers_swapped(const GemmArgs<T>& g, Range m, Range n) {
  return g.b_row == 1 && g.b_col != 1 && g.a_col == 1 && !g.saved && 2 * m.size() <= n.size() &&
         m.size() <= Tile<T>::kNC;
}

template <class T>
bool packs_w(const GemmArgs<T>& g, Range m) {
  return rows_share_a_set<T>(g.b_col) && m.size() > Vec<T>::kWidth;
}

// w: the micropanel of W's rows n, or null to read them where they lie.
template <class T>
void swapped_tile(const GemmArgs<T>& g, Range m, Range n, int64_t pc, int64_t kc, const T* w,
                  const T* b, int64_t vectors) {
  const bool last = pc + kc == g.K;
  const bool in_registers = last && fits_in_registers(g);
  TileResult<T> r{};
  r.c = g.c + m.begin * g.ldc + n.begin;
  r.ldc = g.ldc;
  r.nr = n.size();
  r.accumulate = pc > 0;
  r.relu = in_registers && g.activation == Activation::relu;
  r.bias = last && g.bias ? g.bias + n.begin : nullptr;
  const int64_t b_row = vectors * Vec<T>::kWidth;
  const TileOperands<T> t =
      w ? TileOperands<T>{kc, w, 1, n.size(), b, b_row}
        : TileOperands<T>{kc, g.b + n.begin * g.b_col + pc, g.b_col, 1, b, b_row};
  kMicrokernels<T, TileKind::kTransposed>.instances[n.size() - 1][vectors - 1](t, m.size(), r);
  if (last && !in_registers) finish_tile(g, m.begin, n.begin, m.size(), n.size());
}

template <class T>
void gemm_swapped(const GemmArgs<T>& g, Range m, Range n, T* workspace) {
  constexpr int64_t kMR = Tile<T>::kRows, kNR = kPanelWidth<T>, kMC = Tile<T>::kMC;
  constexpr int64_t kW = Vec<T>::kWidth;
  const int64_t even_kc = even_block(g.K, Tile<T>::kKC);
  const bool packed_w = packs_w(g, m);
  T* const w_pack = workspace + Tile<T>::kKC * Tile<T>::kNC;
  for (int64_t pc = 0; pc < g.K; pc += even_kc) {
    const int64_t kc = std::min(even_kc, g.K - pc);
    T* panel = workspace;
    for (int64_t i = m.begin; i < m.end; i += kNR) {
      const int64_t rows = std::min(kNR, m.end - i);
      const int64_t width = (rows + kW - 1) / kW * kW;
      pack_panel(g.a + i * g.a_row + pc, g.a_row, int64_t{1}, rows, width, kc, panel);
      panel += kc * width;
    }
    for (int64_t jc = n.begin; jc < n.end; jc += kMC) {
      const int64_t block_end = std::min(n.end, jc + kMC);
      for (int64_t j = jc; packed_w && j < block_end; j += kMR) {
        const int64_t rows = std::min(kMR, block_end - j);
        pack_panel(g.b + j * g.b_col + pc, g.b_col, int64_t{1}, rows, rows, kc,
                   w_pack + (j - jc) * kc);
      }
      panel = workspace;
      for (int64_t i = m.begin; i < m.end; i += kNR) {
        const Range rows{i, std::min(m.end, i + kNR)};
        const int64_t vectors = (rows.size() + kW - 1) / kW;
        for (int64_t j = jc; j < block_end; j += kMR) {
          swapped_tile(g, rows, {j, std::min(block_end, j + kMR)}, pc, kc,
                       packed_w ? w_pack + (j - jc) * kc : nullptr, panel, vectors);
        }
        panel += kc * vectors * kW;
      }
    }
  }
}

MLP_NAMESPACE_END
