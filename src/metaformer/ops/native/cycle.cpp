// CycleMLP's two shifts of tokens (B, H, W, C) with the channel sums that its shares are made of, and the
// weighted sum of its three products.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "number.h"

namespace {

// offset[c] says how far away channel c is read, at most `reach`; zeros lie outside the map. A run of equal
// distances would be one copy, but they change from channel to channel: so all distances are read, and chosen.
template <class T>
void choose(const T* here, long step, long index, long end, const int* offset, long reach, long channels, T* out,
            float* sum) {
#pragma omp simd
  for (long c = 0; c < channels; ++c) out[c] = T{};
  for (long d = -reach; d <= reach; ++d) {
    if (index + d < 0 || index + d >= end) continue;
    const T* there = here + d * step;
#pragma omp simd
    for (long c = 0; c < channels; ++c) out[c] = offset[c] == d ? there[c] : out[c];
  }
#pragma omp simd
  for (long c = 0; c < channels; ++c) sum[c] += load(out + c);
}

template <class T>
void shift(const T* x, const int* offset, T* wide, T* high, float* sums, long batch, long height, long width,
           long channels, long reach, int threads) {
  const long row = width * channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < batch * height; ++line) {
    const long h = line % height, start = line * row;
    float* sum = sums + line * 3 * channels;  // (B, H, 3, C): along the width, the height, and none
    std::fill(sum, sum + 3 * channels, 0.0f);
    for (long w = 0; w < width; ++w) {
      const long at = start + w * channels;
      choose(x + at, channels, w, width, offset, reach, channels, wide + at, sum);
      choose(x + at, row, h, height, offset, reach, channels, high + at, sum + channels);
      const T* token = x + at;
#pragma omp simd
      for (long c = 0; c < channels; ++c) sum[2 * channels + c] += load(token + c);
    }
  }
}

// h = share[0] * h + share[1] * w + share[2] * c, shares (3, B, C), in place.
template <class T>
void weigh(T* h, const T* w, const T* c, const T* share, long batch, long positions, long channels, int threads) {
  const long shares = batch * channels;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
  for (long b = 0; b < batch; ++b) {
    for (long p = 0; p < positions; ++p) {
      const long at = (b * positions + p) * channels;
      const T *of = share + b * channels, *w_ = w + at, *c_ = c + at;
      T* h_ = h + at;
#pragma omp simd
      for (long i = 0; i < channels; ++i)
        store(h_ + i, load(of + i) * load(h_ + i) + load(of + shares + i) * load(w_ + i) +
                          load(of + 2 * shares + i) * load(c_ + i));
    }
  }
}

}  // namespace

#define CYCLE(T, suffix)                                                                                          \
  extern "C" void cycle_shift_##suffix(const T* x, const int* offset, T* wide, T* high, float* sums, long batch,    \
                                       long height, long width, long channels, long reach, int threads) {           \
    shift(x, offset, wide, high, sums, batch, height, width, channels, reach, threads);                             \
  }                                                                                                                 \
  extern "C" void cycle_weigh_##suffix(T* h, const T* w, const T* c, const T* share, long batch, long positions,     \
                                       long channels, int threads) {                                                \
    weigh(h, w, c, share, batch, positions, channels, threads);                                                     \
  }
CYCLE(float, float32)
CYCLE(bfloat16, bfloat16)
