// out = taps * star(x) + bias: a K x K convolution of each channel, stride 1, zero padding; star: StarReLU or none.
//
// x and out are (batch, height, width, channels), taps (channels / LANES, K, K, LANES). A thread takes LANES channels
// of a band of rows of one sample, copied as floats to a padded plane (band + K - 1, width + K - 1, LANES).
#include <omp.h>

#include <algorithm>
#include <vector>

#include "simd.h"

namespace {

constexpr long PLANE = 1 << 18;  // bytes of a plane: it stays in the L2 cache
constexpr int TILE = WIDE ? 14 : 7;  // positions of a row at a time: their sums stay in registers, beside a row's taps

struct Star {
  bool on;
  float scale, bias;
};

// COUNT neighboring positions t of a row: out[t] = bias + sum over y, k of plane[y][t + k] * taps[y][k].
// `plane` points at the top left of the first window, whose rows lie `stride` positions apart.
template <int K, int COUNT, class T>
void tile(const float* plane, const float* taps, vec bias, T* out, long stride, long channels) {
  vec sum[COUNT];
  for (int t = 0; t < COUNT; ++t) sum[t] = bias;
  for (int y = 0; y < K; ++y) {
    vec tap[K];
    for (int k = 0; k < K; ++k) tap[k] = load_vec(taps + (y * K + k) * LANES);
    const float* row = plane + y * stride * LANES;
#pragma GCC unroll 32
    for (int x = 0; x < COUNT + K - 1; ++x) {  // each input is read once, for all windows that it is in
      const vec value = load_vec(row + x * LANES);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k)
        if (x - k >= 0 && x - k < COUNT) sum[x - k] += value * tap[k];
    }
  }
  for (int t = 0; t < COUNT; ++t) store_vec(out + t * channels, sum[t]);
}

template <int K, class T>
void run(const T* x, const float* taps, const float* biases, T* out, long batch, long height, long width,
         long channels, Star star, int threads) {
  constexpr int EDGE = K / 2;
  const long stride = width + K - 1, groups = channels / LANES;
  const long band = std::max(1L, std::min(height, PLANE / (stride * LANES * 4) - K + 1));  // rows of a plane's result
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
        const long from = top + y - EDGE;  // row y of the plane is row `from` of x
        if (from < 0 || from >= height) {
          std::fill(row, row + stride * LANES, 0.0f);
          continue;
        }
        std::fill(row, row + EDGE * LANES, 0.0f);
        std::fill(row + (width + EDGE) * LANES, row + stride * LANES, 0.0f);
        for (long w = 0; w < width; ++w) {
          vec value = load_vec(x + first + (from * width + w) * channels);
          if (star.on) {
            value = value < 0 ? vec{} : value;
            value = star.scale * value * value + star.bias;
          }
          store_vec(row + (w + EDGE) * LANES, value);
        }
      }
      const float* tap = taps + group * K * K * LANES;
      const vec bias = biases ? load_vec(biases + group * LANES) : vec{};
      for (long y = 0; y < rows; ++y) {
        const float* row = plane.data() + y * stride * LANES;
        T* result = out + first + (top + y) * width * channels;
        long w = 0;
        for (; w + TILE <= width; w += TILE)
          tile<K, TILE>(row + w * LANES, tap, bias, result + w * channels, stride, channels);
        for (; w + TILE / 2 <= width; w += TILE / 2)
          tile<K, TILE / 2>(row + w * LANES, tap, bias, result + w * channels, stride, channels);
        for (; w < width; ++w) tile<K, 1>(row + w * LANES, tap, bias, result + w * channels, stride, channels);
      }
    }
  }
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void depthwise_conv_##suffix(const T* x, const float* taps, const float* bias, T* out, long batch, \
                                          long height, long width, long channels, int kernel, int star, \
                                          float star_scale, float star_bias, int threads) { \
    const Star act{star != 0, star_scale, star_bias}; \
    switch (kernel) { \
      case 5: return run<5>(x, taps, bias, out, batch, height, width, channels, act, threads); \
      case 7: return run<7>(x, taps, bias, out, batch, height, width, channels, act, threads); \
    } \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
