// AMX in plain C++ as the processor's manual defines it, for `src/metaformer/ops/cpp/tiles.h`. What is a fault of the
// processor, or leaves a thread with tiles in use, ends the process. REFUSE_TILES in the environment is a system that
// does not allow them.
#pragma once
#define EMULATED_TILES

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace tiles {

struct Tile {
  int rows, row_bytes;
  unsigned char bytes[16][64];
};

struct State {
  bool in_use;
  Tile tiles[8];
};

inline thread_local State state;

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "tiles: %s\n", what);
  std::abort();
}

inline bool allowed() {
  static const bool granted = !std::getenv("REFUSE_TILES");
  return granted;
}

inline Tile& configured(int tile) {
  require(state.in_use && state.tiles[tile].rows, "a tile without configuration");
  return state.tiles[tile];
}

inline void load_configuration(const void* bytes) {
  require(allowed(), "not allowed");
  require(!state.in_use, "not released");
  unsigned char image[64];
  std::memcpy(image, bytes, sizeof image);
  require(image[0] == 1 && image[1] == 0, "another palette or start");
  for (int i = 2; i < 16; ++i) require(image[i] == 0, "reserved bytes");
  for (int i = 32; i < 48; ++i) require(image[i] == 0, "bytes of tiles that there are not");
  for (int i = 56; i < 64; ++i) require(image[i] == 0, "rows of tiles that there are not");
  state = {};
  for (int i = 0; i < 8; ++i) {
    const int row_bytes = image[16 + 2 * i] + 256 * image[17 + 2 * i], rows = image[48 + i];
    require(rows <= 16 && row_bytes <= 64 && !rows == !row_bytes, "the size of a tile");
    state.tiles[i].rows = rows;
    state.tiles[i].row_bytes = row_bytes;
  }
  state.in_use = true;
}

inline void release() {
  require(allowed(), "not allowed");
  state = {};
}

template <int TILE>
void load(const void* rows, long stride) {
  Tile& tile = configured(TILE);
  std::memset(tile.bytes, 0, sizeof tile.bytes);
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(tile.bytes[r], static_cast<const char*>(rows) + r * stride, tile.row_bytes);
}

template <int TILE>
void store(void* rows, long stride) {
  const Tile& tile = configured(TILE);
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(static_cast<char*>(rows) + r * stride, tile.bytes[r], tile.row_bytes);
}

inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

// The bfloat16 of a tile, as floats.
struct Numbers {
  float of[16][32];

  [[gnu::no_sanitize_address]] explicit Numbers(const Tile& tile) {
    for (int r = 0; r < 16; ++r)
      for (int i = 0; i < 32; ++i) {
        const uint32_t bits = uint32_t(tile.bytes[r][2 * i]) << 16 | uint32_t(tile.bytes[r][2 * i + 1]) << 24;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        of[r][i] = flushed(value);
      }
  }
};

template <int SUM, int A, int B>
[[gnu::no_sanitize_address]] void multiply() {
  static_assert(SUM != A && SUM != B && A != B);
  Tile& sum = configured(SUM);
  const Tile &a_tile = configured(A), &b_tile = configured(B);
  require(a_tile.rows == sum.rows && b_tile.row_bytes == sum.row_bytes && a_tile.row_bytes == 4 * b_tile.rows,
          "sizes that do not fit");
  const Numbers a(a_tile), b(b_tile);
  for (int r = 0; r < sum.rows; ++r)
    for (int c = 0; c < sum.row_bytes / 4; ++c) {
      float even = 0, odd = 0, total;
      for (int k = 0; k < b_tile.rows; ++k) {
        even = flushed(std::fma(a.of[r][2 * k], b.of[k][2 * c], even));
        odd = flushed(std::fma(a.of[r][2 * k + 1], b.of[k][2 * c + 1], odd));
      }
      std::memcpy(&total, sum.bytes[r] + 4 * c, sizeof total);
      total = flushed(flushed(total) + flushed(even + odd));
      std::memcpy(sum.bytes[r] + 4 * c, &total, sizeof total);
    }
  for (int r = sum.rows; r < 16; ++r) std::memset(sum.bytes[r], 0, sizeof sum.bytes[r]);
}

}  // namespace tiles
