// CycleMLP's two shifts of tokens (B, H, W, C) by one place at most, with the channel sums that its shares are
// made of, and the weighted sum of its three products.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "number.h"

namespace {

// One token, each channel of which is read offset[c] tokens away; `step` leads to the next. Zeros lie outside.
template <class T>
void pick(const T* here, long step, long index, long end, const int* offset, long channels, const T* zeros, T* out,
          float* sum) {
  const T* before = index > 0 ? here - step : zeros;
  const T* after = index + 1 < end ? here + step : zeros;
#pragma omp simd
  for (long c = 0; c < channels; ++c) {
    const T value = offset[c] == 0 ? here[c] : offset[c] > 0 ? after[c] : before[c];
    out[c] = value;
    sum[c] += load(&value);
  }
}

template <class T>
void shift(const T* x, const int* offset, T* wide, T* high, float* sums, long batch, long height, long width,
           long channels, int threads) {
  const long row = width * channels;
  const std::vector<T> zeros(channels, T(0));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < batch * height; ++line) {
    const long h = line % height;
    float* sum = sums + line * 3 * channels;  // (B, H, 3, C): along the width, the height, and none
    std::fill(sum, sum + 3 * channels, 0.0f);
    for (long w = 0; w < width; ++w) {
      const long at = line * row + w * channels;
      const T* token = x + at;
      pick(token, channels, w, width, offset, channels, zeros.data(), wide + at, sum);
      pick(token, row, h, height, offset, channels, zeros.data(), high + at, sum + channels);
      float* plain = sum + 2 * channels;
#pragma omp simd
      for (long c = 0; c < channels; ++c) plain[c] += load(token + c);
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

#define CYCLE(T, suffix) \
  extern "C" void cycle_shift_##suffix(const T* x, const int* offset, T* wide, T* high, float* sums, long batch, \
                                       long height, long width, long channels, int threads) { \
    shift(x, offset, wide, high, sums, batch, height, width, channels, threads); \
  } \
  extern "C" void cycle_weigh_##suffix(T* h, const T* w, const T* c, const T* share, long batch, long positions, \
                                       long channels, int threads) { \
    weigh(h, w, c, share, batch, positions, channels, threads); \
  }
CYCLE(float, float32)
CYCLE(bfloat16, bfloat16)
