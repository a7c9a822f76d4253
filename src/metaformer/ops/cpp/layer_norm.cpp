// out = (x - mean) / sqrt(variance + eps) * weight + bias over the channels of each token of x (tokens, channels).
#include <omp.h>

#include <cmath>

#include "simd.h"

namespace {

// One token. The variance is the mean square of the distances from the mean, in a second pass: it does not cancel.
template <class T>
void normalize(const T* x, const float* weight, const float* bias, T* out, long channels, float eps) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (long c = 0; c < channels; ++c) sum += load(x + c);
  const float mean = sum / float(channels);
#pragma omp simd reduction(+ : squares)
  for (long c = 0; c < channels; ++c) {
    float distance = load(x + c) - mean;
    squares += distance * distance;
  }
  const float inverse = 1 / std::sqrt(squares / float(channels) + eps);
  if (weight) {
#pragma omp simd
    for (long c = 0; c < channels; ++c)
      store(out + c, (load(x + c) - mean) * inverse * weight[c] + (bias ? bias[c] : 0.0f));
  } else {
#pragma omp simd
    for (long c = 0; c < channels; ++c) store(out + c, (load(x + c) - mean) * inverse);
  }
}

template <class T>
void run(const T* x, const float* weight, const float* bias, T* out, long tokens, long channels, float eps,
         int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long i = 0; i < tokens; ++i) normalize(x + i * channels, weight, bias, out + i * channels, channels, eps);
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void layer_norm_##suffix(const T* x, const float* weight, const float* bias, T* out, long tokens, \
                                      long channels, float eps, int threads) { \
    run(x, weight, bias, out, tokens, channels, eps, threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
