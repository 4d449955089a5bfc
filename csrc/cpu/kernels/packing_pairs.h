// Packing for the pair products: micropanels as in packing.h, with the elements of two consecutive
// k side by side,
//   dst[(k / 2) * width + i] = (src[i * across + k * along], src[i * across + (k + 1) * along])
// An odd kc ends in pairs with a zero.

MLP_NAMESPACE_BEGIN

inline void pack_pairs_along_panel(const BFloat16* src, int64_t along, int64_t count, int64_t width,
                                   int64_t kc, Pair* dst) {
  for (int64_t k = 0; k < kc; k += 2, dst += width) {
    const BFloat16* even = src + k * along;
    const BFloat16* odd = k + 1 < kc ? even + along : nullptr;
    for (int64_t i = 0; i < width; i += Pairs::kCount) {
      const auto lanes = Vec<float>::first(count - i);
      Pairs::interleave(even + i, odd ? odd + i : nullptr, lanes)
          .store(dst + i, Vec<float>::first(width - i));
    }
  }
}

inline void pack_pairs_transposed(const BFloat16* src, int64_t across, int64_t count, int64_t width,
                                  int64_t kc, Pair* dst) {
  constexpr int kW = Pairs::kCount;
  for (int64_t i = 0; i < width; i += kW) {
    const auto lanes = Vec<float>::first(width - i);
    for (int64_t k = 0; k < kc; k += 2 * kW) {
      Pairs block[kW];
      MLP_UNROLL
      for (int r = 0; r < kW; ++r) {
        block[r] =
            i + r < count ? Pairs::load_row(src + (i + r) * across + k, kc - k) : Pairs::zero();
      }
      transpose(block);
      MLP_UNROLL
      for (int s = 0; s < kW; ++s) {
        if (k + 2 * s < kc) block[s].store(dst + (k / 2 + s) * width + i, lanes);
      }
    }
  }
}

inline void pack_pairs_strided(const BFloat16* src, int64_t across, int64_t along, int64_t count,
                               int64_t width, int64_t kc, Pair* dst) {
  for (int64_t k = 0; k < kc; k += 2) {
    for (int64_t i = 0; i < width; ++i) {
      const BFloat16* even = src + i * across + k * along;
      const uint32_t low = i < count ? even[0].bits : 0;
      const uint32_t high = i < count && k + 1 < kc ? even[along].bits : 0;
      dst[k / 2 * width + i] = low | (high << 16);
    }
  }
}

inline void pack_pairs(const BFloat16* src, int64_t across, int64_t along, int64_t count,
                       int64_t width, int64_t kc, Pair* dst) {
  if (across == 1) return pack_pairs_along_panel(src, along, count, width, kc, dst);
  if (along == 1) return pack_pairs_transposed(src, across, count, width, kc, dst);
  return pack_pairs_strided(src, across, along, count, width, kc, dst);
}

MLP_NAMESPACE_END
