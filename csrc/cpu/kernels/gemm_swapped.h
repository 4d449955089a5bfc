// The forward product with the operands' roles swapped: C^T = W X^T, for a batch smaller than the
// layer is wide. W is then the operand that is broadcast from, read where it lies, and the small X
// is the one that is packed (transposed); the tiles are turned round as they are stored. Where the
// usual order would spend 1 / M of its time on packing W, this spends 1 / N on packing X.

MLP_NAMESPACE_BEGIN

// A tile's rows have to fit a square block of vectors.
template <class T>
constexpr bool kHasSwapped = Tile<T>::kRows <= Vec<T>::kWidth;

// Where packing X in place of W saves more than turning the tiles costs: Tile::kTurningCost is that
// of an element of C, in elements packed. Rows of W that share a set of L1 are no hindrance in
// tiles of few rows (16 x 1024 x 1024 on Sapphire Rapids: 44 GFLOP/s packed, 76 swapped on AVX2; 77
// and 135 at 32 rows on AVX-512), but are read from L2 by each panel of X.
template <class T>
bool prefers_swapped(const GemmArgs<T>& g, Range m, Range n, const Blocks& blocks) {
  constexpr int64_t kLeastK = 32, kMostRowsSharing = 192;
  const int64_t most =
      rows_share_a_set<T>(g.b_col) ? std::min(kMostRowsSharing, blocks.nc) : blocks.nc;
  const bool lies_well = g.b_row == 1 && g.b_col != 1 && g.a_col == 1;
  const double saved = double(n.size() - m.size()) * double(g.K);
  return lies_well && !g.saved && g.K >= kLeastK && m.size() <= most &&
         saved > Tile<T>::kTurningCost * double(m.size() * n.size());
}

template <class T>
void swapped_tile(const GemmArgs<T>& g, Range m, Range n, int64_t pc, int64_t kc, const T* b,
                  int64_t vectors) {
  const bool last = pc + kc == g.K;
  const bool in_registers = last && fits_in_registers(g);
  TileResult<T> r{};
  r.c = g.c + m.begin * g.ldc + n.begin;
  r.ldc = g.ldc;
  r.nr = n.size();
  r.accumulate = pc > 0;
  r.relu = in_registers && g.activation == Activation::relu;
  r.bias = last && g.bias ? g.bias + n.begin : nullptr;
  const TileOperands<T> t{kc, g.b + n.begin * g.b_col + pc, g.b_col, 1,
                          b,  vectors * Vec<T>::kWidth};
  kMicrokernels<T, TileKind::kTransposed>.instances[n.size() - 1][vectors - 1](t, m.size(), r);
  if (last && !in_registers) finish_tile(g, m.begin, n.begin, m.size(), n.size());
}

template <class T>
void gemm_swapped(const GemmArgs<T>& g, Range m, Range n, const Blocks& blocks, T* workspace) {
  constexpr int64_t kNR = kPanelWidth<T>, kW = Vec<T>::kWidth;
  const int64_t most = rows_share_a_set<T>(g.b_col) ? kMostRowsOfASet : Tile<T>::kRows;
  const int64_t mr = std::min(most, Tile<T>::kRows);
  const int64_t even_kc = even_block(g.K, block_depth<T>(m, n, blocks));
  for (int64_t pc = 0; pc < g.K; pc += even_kc) {
    const int64_t kc = std::min(even_kc, g.K - pc);
    T* panel = workspace;
    for (int64_t i = m.begin; i < m.end; i += kNR) {
      const int64_t rows = std::min(kNR, m.end - i);
      const int64_t width = (rows + kW - 1) / kW * kW;
      pack_panel(g.a + i * g.a_row + pc, g.a_row, int64_t{1}, rows, width, kc, panel);
      panel += kc * width;
    }
    for (int64_t jc = n.begin; jc < n.end; jc += blocks.mc) {
      const int64_t block_end = std::min(n.end, jc + blocks.mc);
      panel = workspace;
      for (int64_t i = m.begin; i < m.end; i += kNR) {
        const Range rows{i, std::min(m.end, i + kNR)};
        const int64_t vectors = (rows.size() + kW - 1) / kW;
        const EvenCut tiles{block_end - jc, mr};
        for (int64_t j = jc; j < block_end;) {
          const Range columns{j, j + tiles.at(j - jc)};
          swapped_tile(g, rows, columns, pc, kc, panel, vectors);
          j = columns.end;
        }
        panel += kc * vectors * kW;
      }
    }
  }
}

MLP_NAMESPACE_END
