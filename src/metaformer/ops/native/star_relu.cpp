// s * max(x, 0)^2 + b in place.
#include <omp.h>

#include "number.h"

namespace {

template <class T>
void run(T* x, long count, float scale, float bias, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (long i = 0; i < count; ++i) {
    float value = load(x + i);
    float positive = value < 0 ? 0 : value;  // what is no number stays none
    store(x + i, scale * positive * positive + bias);
  }
}

}  // namespace

extern "C" void star_relu_float32(float* x, long count, float scale, float bias, int threads) {
  run(x, count, scale, bias, threads);
}
extern "C" void star_relu_bfloat16(bfloat16* x, long count, float scale, float bias, int threads) {
  run(x, count, scale, bias, threads);
}
