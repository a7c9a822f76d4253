// A convolution of each channel by itself, K x K, stride 1, zeros around; StarReLU of its input where asked.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace {

constexpr long PLANE = 1 << 18;  // bytes that a thread's copy of the input takes: they stay in the second cache
constexpr int TILE = WIDE ? 14 : 4;  // places of a row at a time: their sums stay in registers

struct Star {
  bool on;
  float scale, bias;
};

// COUNT sums of a row; plane (rows, stride) of lanes, taps (K, K) of lanes
template <int K, int COUNT, class T>
void tile(const float* plane, const float* taps, lanes bias, T* out, long stride, long channels) {
  lanes sum[COUNT];
  for (int t = 0; t < COUNT; ++t) sum[t] = bias;
  for (int y = 0; y < K; ++y) {
    lanes tap[K];
    for (int k = 0; k < K; ++k) tap[k] = read(taps + (y * K + k) * LANES);
    const float* row = plane + y * stride * LANES;
#pragma GCC unroll 32
    for (int x = 0; x < COUNT + K - 1; ++x) {
      const lanes here = read(row + x * LANES);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k)
        if (x - k >= 0 && x - k < COUNT) sum[x - k] += here * tap[k];
    }
  }
  for (int t = 0; t < COUNT; ++t) write(out + t * channels, sum[t]);
}

template <int K, class T>
void run(const T* x, const float* taps, const float* biases, T* out, long batch, long height, long width,
         long channels, Star star, int threads) {
  constexpr int EDGE = K / 2;
  const long stride = width + K - 1, groups = channels / LANES;
  const long band = std::max(1L, std::min(height, PLANE / (stride * LANES * 4) - K + 1));
  const long bands = (height + band - 1) / band;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> plane((band + K - 1) * stride * LANES);
#pragma omp for schedule(static)
    for (long task = 0; task < batch * groups * bands; ++task) {
      const long sample = task / groups / bands, top = task / groups % bands * band, group = task % groups;
      const long rows = std::min(band, height - top), first = sample * height * width * channels + group * LANES;
      for (long y = 0; y < rows + K - 1; ++y) {
        float* row = plane.data() + y * stride * LANES;
        const long from = top + y - EDGE;
        if (from < 0 || from >= height) {
          std::fill(row, row + stride * LANES, 0.0f);
          continue;
        }
        std::fill(row, row + EDGE * LANES, 0.0f);
        std::fill(row + (width + EDGE) * LANES, row + stride * LANES, 0.0f);
        for (long at = 0; at < width; ++at) {
          lanes here = read(x + first + (from * width + at) * channels);
          if (star.on) {
            here = here < 0 ? lanes{} : here;
            here = star.scale * here * here + star.bias;
          }
          write(row + (at + EDGE) * LANES, here);
        }
      }
      const float* tap = taps + group * K * K * LANES;
      const lanes bias = biases ? read(biases + group * LANES) : lanes{};
      for (long y = 0; y < rows; ++y) {
        const float* row = plane.data() + y * stride * LANES;
        T* place = out + first + (top + y) * width * channels;
        long at = 0;
        for (; at + TILE <= width; at += TILE)
          tile<K, TILE>(row + at * LANES, tap, bias, place + at * channels, stride, channels);
        for (; at + TILE / 2 <= width; at += TILE / 2)
          tile<K, TILE / 2>(row + at * LANES, tap, bias, place + at * channels, stride, channels);
        for (; at < width; ++at)
          tile<K, 1>(row + at * LANES, tap, bias, place + at * channels, stride, channels);
      }
    }
  }
}

}  // namespace

#define DEPTHWISE(T, suffix) \
  extern "C" void depthwise_##suffix(const T* x, const float* taps, const float* biases, T* out, long batch, \
                                     long height, long width, long channels, int side, int star, float scale, \
                                     float bias, int threads) { \
    const Star act{star != 0, scale, bias}; \
    switch (side) { \
      case 5: return run<5>(x, taps, biases, out, batch, height, width, channels, act, threads); \
      case 7: return run<7>(x, taps, biases, out, batch, height, width, channels, act, threads); \
    } \
  }
DEPTHWISE(float, float32)
DEPTHWISE(bfloat16, bfloat16)
