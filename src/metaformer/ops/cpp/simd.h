// Floats and bfloat16 in memory, and SIMD registers of floats by GCC's and Clang's vector types.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

using bfloat16 = uint16_t;  // the upper half of a float

#if defined(__AVX512F__)
constexpr bool WIDE = true;  // 32 registers of 16 floats
constexpr int LANES = 16;
#else
constexpr bool WIDE = false;  // 16 registers of 8 floats
constexpr int LANES = 8;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float load(const float* p) { return *p; }
inline float load(const bfloat16* p) { return bit_cast<float>(uint32_t(*p) << 16); }

inline void store(float* p, float value) { *p = value; }

// Rounds to nearest, ties to even: 0x7fff plus the last bit that stays carries into it. NaN stays NaN.
inline void store(bfloat16* p, float value) {
  uint32_t bits = bit_cast<uint32_t>(value);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *p = uint16_t(value == value ? rounded : 0x7fc0u);
}

inline vec load_vec(const float* p) {
  vec value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline vec load_vec(const bfloat16* p) {
  hvec value;
  std::memcpy(&value, p, sizeof value);
  return bit_cast<vec>(__builtin_convertvector(value, uvec) << 16);
}

inline void store_vec(float* p, vec value) { std::memcpy(p, &value, sizeof value); }

// Rounds as the scalar `store` does.
inline void store_vec(bfloat16* p, vec value) {
#if defined(__AVX512BF16__)
  const hvec upper = bit_cast<hvec>(_mm512_cvtneps_pbh(bit_cast<__m512>(value)));
#else
  const uvec bits = bit_cast<uvec>(value);
  const uvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const hvec upper = __builtin_convertvector(value == value ? rounded : uvec{} + 0x7fc0u, hvec);
#endif
  std::memcpy(p, &upper, sizeof upper);
}

// Minimum and maximum; where either is NaN, b.
#if defined(__AVX512F__)
inline vec min_vec(vec a, vec b) { return bit_cast<vec>(_mm512_min_ps(__m512(a), __m512(b))); }
inline vec max_vec(vec a, vec b) { return bit_cast<vec>(_mm512_max_ps(__m512(a), __m512(b))); }
#else
inline vec min_vec(vec a, vec b) { return a < b ? a : b; }
inline vec max_vec(vec a, vec b) { return a > b ? a : b; }
#endif

// Of rows a and b = a + STEP, exchanges the upper STEP of each 2 * STEP lanes of a with the lower STEP of b.
template <int STEP, int... I>
inline void exchange(vec& a, vec& b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  const vec first = __builtin_shufflevector(a, b, ((I & STEP) ? LANES + I - STEP : I)...);
  const vec second = __builtin_shufflevector(a, b, ((I & STEP) ? LANES + I : I + STEP)...);
#else
  const vec first = __builtin_shuffle(a, b, uvec{uint32_t((I & STEP) ? LANES + I - STEP : I)...});
  const vec second = __builtin_shuffle(a, b, uvec{uint32_t((I & STEP) ? LANES + I : I + STEP)...});
#endif
  a = first;
  b = second;
}

// Transposes LANES x LANES floats by exchanging off-diagonal blocks, of half the size each time.
template <int STEP = LANES / 2>
inline void transpose(vec (&rows)[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i)
    if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP], std::make_integer_sequence<int, LANES>{});
  if constexpr (STEP > 1) transpose<STEP / 2>(rows);
}

// Lane i of the result is lane i ^ STEP.
template <int STEP, int... I>
inline vec swap_lanes(vec value, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(value, value, (I ^ STEP)...);
#else
  return __builtin_shuffle(value, uvec{uint32_t(I ^ STEP)...});
#endif
}

// Combines all lanes, by halves.
template <int STEP = LANES / 2, class Combine>
inline float reduce(vec value, const Combine& combine) {
  value = combine(value, swap_lanes<STEP>(value, std::make_integer_sequence<int, LANES>{}));
  if constexpr (STEP > 1) return reduce<STEP / 2>(value, combine);
  return value[0];
}

inline float sum_lanes(vec value) {
  return reduce(value, [](vec a, vec b) { return a + b; });
}

// e^x for x <= 0, to 2 units in the last place: 2^n e^r with n = round(x / ln 2) and |r| <= ln(2) / 2; NaN stays NaN.
inline vec exp_vec(vec x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which its last bits then hold
  x = max_vec(vec{} - 87.0f, x);
  vec shifted = x * 1.44269504f + magic;
  vec n = shifted - magic;
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts, the first of few bits
  vec y = vec{} + 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const uvec power = (bit_cast<uvec>(shifted) + 127) << 23;  // 2^n; magic's own bits leave at the upper end
  return y * bit_cast<vec>(power);
}
