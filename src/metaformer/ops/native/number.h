// How numbers lie in memory: float as it is, bfloat16 as the upper half of a float.
#pragma once
#include <cstdint>
#include <cstring>

using bfloat16 = uint16_t;

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float load(const float* place) { return *place; }
inline float load(const bfloat16* place) { return float_of(uint32_t(*place) << 16); }

inline void store(float* place, float value) { *place = value; }

// To the nearest, halves to even; what is no number stays none.
inline void store(bfloat16* place, float value) {
  uint32_t bits = bits_of(value);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *place = uint16_t(value == value ? rounded : 0x7fc0u);
}
