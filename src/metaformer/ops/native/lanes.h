// Several floats in one register of the processor, as GCC's and Clang's vector types give them.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "number.h"

#if defined(__AVX512F__)
constexpr bool WIDE = true;  // 32 registers of 16 floats
constexpr int LANES = 16;
#else
constexpr bool WIDE = false;
constexpr int LANES = 8;
#endif

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

template <class To, class From>
To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline lanes read(const float* place) {
  lanes value;
  std::memcpy(&value, place, sizeof value);
  return value;
}

inline lanes read(const bfloat16* place) {
  halves value;
  std::memcpy(&value, place, sizeof value);
  return same_bits<lanes>(__builtin_convertvector(value, integers) << 16);
}

inline void write(float* place, lanes value) { std::memcpy(place, &value, sizeof value); }

// As `store` of number.h rounds.
inline void write(bfloat16* place, lanes value) {
#if defined(__AVX512BF16__)
  const halves upper = same_bits<halves>(_mm512_cvtneps_pbh(same_bits<__m512>(value)));
#else
  const integers bits = same_bits<integers>(value);
  const integers rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const halves upper = __builtin_convertvector(value == value ? rounded : integers{} + 0x7fc0u, halves);
#endif
  std::memcpy(place, &upper, sizeof upper);
}

// The second of two where one is no number.
#if defined(__AVX512F__)
inline lanes smaller(lanes a, lanes b) { return same_bits<lanes>(_mm512_min_ps(__m512(a), __m512(b))); }
inline lanes larger(lanes a, lanes b) { return same_bits<lanes>(_mm512_max_ps(__m512(a), __m512(b))); }
#else
inline lanes smaller(lanes a, lanes b) { return a < b ? a : b; }
inline lanes larger(lanes a, lanes b) { return a > b ? a : b; }
#endif

// Swaps the halves that lie across from each other, of pairs of rows STEP apart.
template <int STEP, int... I>
inline void swap(lanes& a, lanes& b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  const lanes first = __builtin_shufflevector(a, b, ((I & STEP) ? LANES + I - STEP : I)...);
  const lanes second = __builtin_shufflevector(a, b, ((I & STEP) ? LANES + I : I + STEP)...);
#else
  const lanes first = __builtin_shuffle(a, b, integers{uint32_t((I & STEP) ? LANES + I - STEP : I)...});
  const lanes second = __builtin_shuffle(a, b, integers{uint32_t((I & STEP) ? LANES + I : I + STEP)...});
#endif
  a = first;
  b = second;
}

template <int STEP = LANES / 2>
inline void transpose(lanes (&rows)[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i)
    if (!(i & STEP)) swap<STEP>(rows[i], rows[i + STEP], std::make_integer_sequence<int, LANES>{});
  if constexpr (STEP > 1) transpose<STEP / 2>(rows);
}

inline float total(lanes value) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += value[i];
  return sum;
}

// e^x for x <= 0, to 2 units in the last place: 2^n e^r with |r| <= ln(2) / 2; what is no number stays none.
inline lanes exponential(lanes x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer in its last bits
  x = larger(lanes{} - 87.0f, x);
  lanes moved = x * 1.44269504f + shift;
  lanes n = moved - shift;
  lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
  lanes y = lanes{} + 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const integers power = (same_bits<integers>(moved) + 127) << 23;  // the shift's own bits leave at the upper end
  return y * same_bits<lanes>(power);
}
