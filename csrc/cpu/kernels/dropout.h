// Dropout: each element kept with probability 1 - p and divided by it, by a hash of its index and
// the step's seed. The mask is worked out anew in the backward pass, so none is stored, and it does
// not depend on how the work is cut.

MLP_NAMESPACE_BEGIN

// A bijective mix of 32 bits (the constants are Wellons's "lowbias32", found by search).
MLP_INLINE uint32_t mix_bits(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  x ^= x >> 16;
  return x;
}

// Two rounds with one half of the seed each: 2^32 elements a step before indices repeat.
MLP_INLINE uint32_t random_bits(uint64_t seed, uint32_t index) {
  return mix_bits(mix_bits(index ^ uint32_t(seed)) + uint32_t(seed >> 32));
}

template <class T>
void dropout(const DropoutArgs<T>& p, Range rows, Range columns) {
  // Kept are the values at or above the threshold; p = 1 keeps none.
  const double bound = p.probability * 4294967296.0;
  const bool none = bound >= 4294967295.5;
  const uint32_t threshold = none ? 0xffffffffU : uint32_t(bound);
  const T scale = none ? T(0) : T(1 / (1 - p.probability));
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    const T* in = p.in + m * p.ld_in;
    T* out = p.out + m * p.ld_out;
    const uint32_t first = uint32_t(m * p.ld_out);
    for (int64_t n = columns.begin; n < columns.end; ++n) {
      const bool kept = random_bits(p.seed, first + uint32_t(n)) >= threshold && !none;
      out[n] = in[n] * (kept ? scale : T(0));
    }
  }
}

MLP_NAMESPACE_END
