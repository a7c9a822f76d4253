// Mean 0 and variance 1 over the channels of each token, then weight and bias where there are any.
#include <omp.h>

#include <cmath>

#include "number.h"

namespace {

template <class T>
void normalise(const T* x, const float* weight, const float* bias, T* y, long channels, float eps) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (long c = 0; c < channels; ++c) sum += load(x + c);
  const float mean = sum / float(channels);
#pragma omp simd reduction(+ : squares)
  for (long c = 0; c < channels; ++c) {
    float distance = load(x + c) - mean;
    squares += distance * distance;
  }
  const float factor = 1 / std::sqrt(squares / float(channels) + eps);
  if (weight) {
#pragma omp simd
    for (long c = 0; c < channels; ++c)
      store(y + c, (load(x + c) - mean) * factor * weight[c] + (bias ? bias[c] : 0.0f));
  } else {
#pragma omp simd
    for (long c = 0; c < channels; ++c) store(y + c, (load(x + c) - mean) * factor);
  }
}

template <class T>
void run(const T* x, const float* weight, const float* bias, T* y, long tokens, long channels, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long i = 0; i < tokens; ++i) normalise(x + i * channels, weight, bias, y + i * channels, channels, eps);
}

}  // namespace

#define LAYER_NORM(T, suffix) \
  extern "C" void layer_norm_##suffix(const T* x, const float* weight, const float* bias, T* y, long tokens, \
                                      long channels, float eps, int threads) { \
    run(x, weight, bias, y, tokens, channels, eps, threads); \
  }
LAYER_NORM(float, float32)
LAYER_NORM(bfloat16, bfloat16)
