// AMX: eight tiles of 16 rows of 64 bytes, and their product of bfloat16.
//
// Few processors have them: tests define EMULATED_TILES and the instructions in plain C++. Here they are written out,
// since the intrinsics of some compilers do not say that memory is read.
#pragma once
#include <cstdint>

#if defined(EMULATED_TILES)
#define HAS_TILES 1
#elif defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>

namespace tiles {

// Whether the system lets this process use tiles; it is asked once.
inline bool allowed() {
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
}

inline void load_configuration(const void* bytes) { asm volatile("ldtilecfg (%0)" ::"r"(bytes) : "memory"); }

// Ends this thread's use of tiles: the system need no longer keep what they hold.
inline void release() { asm volatile("tilerelease"); }

// Fills a tile with rows that lie `stride` bytes apart.
template <int TILE>
void load(const void* rows, long stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
void store(void* rows, long stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(TILE) : "memory");
}

// sum[r][c] += the sum over k of a[r][k] * b[k / 2][2 * c + k % 2]: a row is 16 floats of `sum`, 32 bfloat16 of others.
template <int SUM, int A, int B>
void multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
}

}  // namespace tiles
#else
#define HAS_TILES 0

namespace tiles {

inline bool allowed() { return false; }
inline void load_configuration(const void*) {}
inline void release() {}

}  // namespace tiles
#endif

namespace tiles {

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Configuration) == 64);

// Begins this thread's use of tiles, all of their full size.
inline void configure() {
  static constexpr Configuration full;
  load_configuration(&full);
}

}  // namespace tiles
