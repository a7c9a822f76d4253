// Group norm of one group, over each sample of x (batch, positions, channels):
//
//   sample_moments:      out = mean, 1 / sigma
//   group_norm_backward: gradients of n * gamma + beta, n = (x - mean) / sigma
#include "samples.h"

namespace {

constexpr long CHUNK = 64;  // positions whose sums are held in float

template <class T>
struct Backward {
  const T* x;
  const float* grad_out;
  const T* residual;             // what is added to grad_x, or null
  const float *moments, *gamma;  // the latter may be null: 1
  T* grad_x;
  float *grad_gamma, *grad_beta;
  long positions, channels;
};

// With sums over the `count` numbers of a sample:
//   grad_x = (gamma * grad_out - sum(gamma * grad_out) / count - n * sum(gamma * grad_out * n) / count) / sigma
//   grad_beta = sum over samples and positions of grad_out, grad_gamma = the same of grad_out * n
template <class T>
void backward(const Backward<T>& op, long batch, int threads) {
  const long channels = op.channels, sample = op.positions * channels;
  std::vector<double> all(batch * 2 * channels);  // each sample's parts of grad_beta and grad_gamma
  for_samples(batch, 2 * channels, threads, [&] {
    return [&, part = std::vector<float>(2 * channels), scale = std::vector<float>(channels)](
               long b, const Crew& crew) mutable {
      const float mean = op.moments[2 * b], inverse = op.moments[2 * b + 1];
      const long start = b * sample, first = start + crew.first(op.positions) * channels;
      const long last = start + crew.last(op.positions) * channels;
      std::vector<double> sums(2 * channels);
      float *grads = part.data(), *products = grads + channels;
      for (long chunk = first; chunk < last; chunk += CHUNK * channels) {
        std::fill(part.begin(), part.end(), 0.0f);
        for (long token = chunk; token < std::min(last, chunk + CHUNK * channels); token += channels) {
          const float* grad_out = op.grad_out + token;
          const T* x = op.x + token;
#pragma omp simd
          for (long c = 0; c < channels; ++c) {
            grads[c] += grad_out[c];
            products[c] += grad_out[c] * (load(x + c) - mean);
          }
        }
        for (long i = 0; i < 2 * channels; ++i) sums[i] += part[i];
      }
      crew.sum(sums.data(), 2 * channels);
      double total = 0, product = 0;
      for (long c = 0; c < channels; ++c) {
        const float gamma = op.gamma ? op.gamma[c] : 1.0f;
        sums[channels + c] *= inverse;
        total += gamma * sums[c];
        product += gamma * sums[channels + c];
        scale[c] = gamma * inverse;
      }
      const float offset = float(total * inverse / double(sample));
      const float slope = float(product * inverse * inverse / double(sample));
      for (long token = first; token < last; token += channels) {
        const float *grad_out = op.grad_out + token, *factor = scale.data();
        const T *x = op.x + token, *residual = op.residual ? op.residual + token : nullptr;
        T* grad_x = op.grad_x + token;
#pragma omp simd
        for (long c = 0; c < channels; ++c) {
          const float grad = factor[c] * grad_out[c] - offset - slope * (load(x + c) - mean);
          store(grad_x + c, residual ? grad + load(residual + c) : grad);
        }
      }
      if (crew.thread == 0) std::copy(sums.begin(), sums.end(), all.begin() + b * 2 * channels);
    };
  });
  for (long c = 0; c < channels; ++c) {
    double beta = 0, gamma = 0;
    for (long b = 0; b < batch; ++b) {
      beta += all[b * 2 * channels + c];
      gamma += all[b * 2 * channels + channels + c];
    }
    op.grad_beta[c] = float(beta);
    op.grad_gamma[c] = float(gamma);
  }
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void sample_moments_##suffix(const T* x, float* out, long batch, long positions, long channels, float eps, \
                                          int threads) { \
    for_samples(batch, 2, threads, [&] { \
      return [&](long b, const Crew& crew) { \
        Moments::of(x + b * positions * channels, positions, channels, eps, crew).store(out + 2 * b); \
      }; \
    }); \
  } \
  extern "C" void group_norm_backward_##suffix(const T* x, const float* grad_out, const T* residual, \
                                               const float* moments, const float* gamma, T* grad_x, \
                                               float* grad_gamma, float* grad_beta, long batch, long positions, \
                                               long channels, int threads) { \
    backward(Backward<T>{x, grad_out, residual, moments, gamma, grad_x, grad_gamma, grad_beta, positions, channels}, \
             batch, threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
