// out (batch, channels) = weight * mean(norm(x)) + bias, the mean over the positions of x (batch, positions, channels).
// The norm is none, layer norm of each position, or group norm of each sample.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "matmul.h"

namespace {

// Mean of `rows` rows and 1 / sqrt(variance + eps), in two passes, which do not cancel.
template <class T>
void moments(const T* x, long rows, long channels, float eps, float& mean, float& inverse) {
  const auto mean_of = [&](auto term) {
    double total = 0;
    for (long r = 0; r < rows; ++r) {
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (long c = 0; c < channels; ++c) sum += term(load(x + r * channels + c));
      total += sum;
    }
    return total / double(rows * channels);
  };
  const float center = mean = float(mean_of([](float value) { return value; }));
  const double variance = mean_of([=](float value) { return (value - center) * (value - center); });
  inverse = float(1 / std::sqrt(variance + eps));
}

// One sample; `sums` (channels,) is memory to work in.
template <class T>
void pool(const T* x, const float* weight, const float* bias, T* out, long positions, long channels, Norm norm,
          float eps, float* sums) {
  std::fill_n(sums, channels, 0.0f);
  float mean = 0, inverse = 1;
  for (long p = 0; p < positions; ++p) {
    const T* row = x + p * channels;
    if (norm == Norm::layer_norm) moments(row, 1, channels, eps, mean, inverse);
#pragma omp simd
    for (long c = 0; c < channels; ++c) sums[c] += (load(row + c) - mean) * inverse;
  }
  if (norm == Norm::layer_norm) mean = 0, inverse = 1;
  if (norm == Norm::group_norm) moments(x, positions, channels, eps, mean, inverse);
  const float share = 1 / float(positions);
  for (long c = 0; c < channels; ++c)
    store(out + c, (sums[c] * share - mean) * inverse * (weight ? weight[c] : 1.0f) + (bias ? bias[c] : 0.0f));
}

template <class T>
void run(const T* x, const float* weight, const float* bias, T* out, long batch, long positions, long channels,
         Norm norm, float eps, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> sums(channels);
#pragma omp for schedule(static)
    for (long b = 0; b < batch; ++b)
      pool(x + b * positions * channels, weight, bias, out + b * channels, positions, channels, norm, eps, sums.data());
  }
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void global_pool_##suffix(const T* x, const float* weight, const float* bias, T* out, long batch, \
                                       long positions, long channels, int norm, float eps, int threads) { \
    run(x, weight, bias, out, batch, positions, channels, Norm(norm), eps, threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
