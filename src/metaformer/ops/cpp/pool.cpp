// PoolFormer's token mixing of x (batch, height, width, channels), with pool(x) the mean of the 3 x 3 neighbors inside:
//
//   pool_minus_self: out = pool(x) - x, or the transposed matrix times x, which is its gradient
//   pool_residual:   out = residual_scale * x + factor * weight / sigma(x) * (pool(x) - x), with moments of x and out
//
// and the gradients of the latter. Moments are mean and 1 / sigma of a sample, which has one factor. A window's sum is
// taken of the sums of three rows, which its neighbors share.
#include <numeric>

#include "samples.h"

namespace {

// 1 / (how many of the three neighbors of `index` along an axis lie inside).
float share(long index, long length) { return 1.0f / float(1 + (index > 0) + (index + 1 < length)); }

struct Shape {
  long height, width, channels;
  long row() const { return width * channels; }
  long sample() const { return height * row(); }
};

// A row of sums over three rows, with a column of zeros at either end.
struct Columns {
  std::vector<float> memory;
  long channels;
  explicit Columns(const Shape& shape) : memory(shape.row() + 2 * shape.channels, 0.0f), channels(shape.channels) {}
  float* data() { return memory.data() + channels; }
  const float* window(long w) const { return memory.data() + w * channels; }  // columns w - 1, w, w + 1 lie side by side
};

// Sums about row h, which lies at `here`. With S the sum over the window and D = diag(1 / count), pool = D S; its
// transpose S D divides before it sums. Counts are products of a row's and a column's.
template <class T>
void window_rows(const T* here, long h, const Shape& shape, bool transposed, float* out) {
  const bool above = h > 0, below = h + 1 < shape.height;
  const T *up = above ? here - shape.row() : here, *down = below ? here + shape.row() : here;
  const float middle = transposed ? share(h, shape.height) : 1.0f;
  const float high = !above ? 0.0f : transposed ? share(h - 1, shape.height) : 1.0f;
  const float low = !below ? 0.0f : transposed ? share(h + 1, shape.height) : 1.0f;
  for (long w = 0; w < shape.width; ++w) {
    const float factor = transposed ? share(w, shape.width) : 1.0f;
    const long first = w * shape.channels, last = first + shape.channels;
#pragma omp simd
    for (long c = first; c < last; ++c)
      out[c] = factor * (middle * load(here + c) + high * load(up + c) + low * load(down + c));
  }
}

template <class T>
void stencil(const T* x, T* out, long batch, const Shape& shape, bool transposed, int threads) {
  const long channels = shape.channels;
#pragma omp parallel num_threads(threads)
  {
    Columns columns(shape);
#pragma omp for schedule(static)
    for (long line = 0; line < batch * shape.height; ++line) {
      const long h = line % shape.height, start = line * shape.row();
      window_rows(x + start, h, shape, transposed, columns.data());
      for (long w = 0; w < shape.width; ++w) {
        const float factor = transposed ? 1.0f : share(h, shape.height) * share(w, shape.width);
        const float* sum = columns.window(w);
        const long first = start + w * channels;
#pragma omp simd
        for (long c = 0; c < channels; ++c)
          store(out + first + c, factor * (sum[c] + sum[c + channels] + sum[c + 2 * channels]) - load(x + first + c));
      }
    }
  }
}

template <class T>
struct Residual {
  const T* x;
  const float *weight, *residual_scale, *factors;  // the last (batch,), or null: 1
  T* out;
  float *x_moments, *moments;  // the former may be null
  Shape shape;
  float eps, next_eps;
  float mean_scale;  // of residual_scale
};

// out = above + here + below, each of `count` numbers; above and below may be null.
template <class T>
void sum_rows(const T* above, const T* here, const T* below, float* out, long count) {
  if (above && below) {
#pragma omp simd
    for (long i = 0; i < count; ++i) out[i] = load(above + i) + load(here + i) + load(below + i);
  } else if (above || below) {
    const T* other = above ? above : below;
#pragma omp simd
    for (long i = 0; i < count; ++i) out[i] = load(other + i) + load(here + i);
  } else {
#pragma omp simd
    for (long i = 0; i < count; ++i) out[i] = load(here + i);
  }
}

// A crew's rows of a sample's result, and the sums of what was written.
template <class T>
Sums mix(const Residual<T>& op, const T* x, T* y, const Crew& crew, float pivot, const float* gain, Columns& columns) {
  Sums total;
  const long height = op.shape.height, width = op.shape.width, channels = op.shape.channels, row = op.shape.row();
  const float* scale = op.residual_scale;
  for (long h = crew.first(height); h < crew.last(height); ++h) {
    const T* here = x + h * row;
    const T* above = h > 0 ? here - row : nullptr;
    const T* below = h + 1 < height ? here + row : nullptr;
    sum_rows(above, here, below, columns.data(), row);
    const long rows = 1 + (above != nullptr) + (below != nullptr);
    for (long w = 0; w < width; ++w) {
      const float share = 1.0f / float(rows * (1 + (w > 0) + (w + 1 < width)));
      const float* sum = columns.window(w);
      const T* token = here + w * channels;
      T* out = y + h * row + w * channels;
#pragma omp simd
      for (long c = 0; c < channels; ++c) {
        float value = load(token + c);
        float mean = (sum[c] + sum[c + channels] + sum[c + 2 * channels]) * share;
        store(out + c, scale[c] * value + gain[c] * (mean - value));
      }
    }
    add_sums(y + h * row, row, pivot, total);  // while the row is in the cache
  }
  return total;
}

template <class T>
void residual(const Residual<T>& op, long batch, int threads) {
  const Shape& shape = op.shape;
  for_samples(batch, 2, threads, [&] {
    return [&, columns = Columns(shape), gain = std::vector<float>(shape.channels)](long b, const Crew& crew) mutable {
      const T* x = op.x + b * shape.sample();
      const Moments before = Moments::of(x, shape.height, shape.row(), op.eps, crew);
      const float inverse = op.factors ? op.factors[b] * before.inverse_deviation : before.inverse_deviation;
      for (long c = 0; c < shape.channels; ++c) gain[c] = op.weight[c] * inverse;
      const float pivot = before.mean * op.mean_scale;  // pooling keeps means, so the branch adds about nothing to it
      Sums total = mix(op, x, op.out + b * shape.sample(), crew, pivot, gain.data(), columns);
      crew.sum(total.values, 2);
      if (op.x_moments) before.store(op.x_moments + 2 * b);
      Moments(total, double(shape.sample()), pivot, op.next_eps).store(op.moments + 2 * b);
    };
  });
}

// Gradients of `residual` with a residual_scale of 1. With q = (pool - 1)' grad_out, which sums to 0 over the positions
// as pooling keeps constants, gain = factor * weight / sigma and sums over the `count` numbers of a sample:
//   grad_x = grad_out + gain * q - pull * (x - mean),   pull = sum(gain * q * (x - mean)) / (count * sigma^2)
//   grad_weight = sum over samples and positions of factor / sigma * q * (x - mean)
template <class T>
struct ResidualBackward {
  const T *grad_out, *x;
  const float *weight, *factors, *moments;
  T* grad_x;
  float* grad_weight;
  Shape shape;
};

template <class T>
void residual_backward(const ResidualBackward<T>& op, long batch, int threads) {
  const Shape& shape = op.shape;
  const long channels = shape.channels, row = shape.row();
  std::vector<double> all(batch * channels);  // each sample's part of grad_weight
  for_samples(batch, channels, threads, [&] {
    using Vector = std::vector<float>;
    return [&, columns = Columns(shape), gain = Vector(channels), products = Vector(channels),
            sums = std::vector<double>(channels)](long b, const Crew& crew) mutable {
      const float mean = op.moments[2 * b], inverse = op.moments[2 * b + 1];
      const float factor = op.factors ? op.factors[b] * inverse : inverse;
      const long start = b * shape.sample(), first = start + crew.first(shape.height) * row;
      const long last = start + crew.last(shape.height) * row;
      for (long c = 0; c < channels; ++c) gain[c] = op.weight[c] * factor;
      std::fill(sums.begin(), sums.end(), 0.0);
      for (long line = first; line < last; line += row) {
        window_rows(op.grad_out + line, (line - start) / row, shape, true, columns.data());
        std::fill(products.begin(), products.end(), 0.0f);
        for (long w = 0; w < shape.width; ++w) {
          const float *sum = columns.window(w), *scale = gain.data();
          const T *grad_out = op.grad_out + line + w * channels, *x = op.x + line + w * channels;
          T* grad_x = op.grad_x + line + w * channels;
          float* product = products.data();
#pragma omp simd
          for (long c = 0; c < channels; ++c) {
            const float grad = load(grad_out + c), q = sum[c] + sum[c + channels] + sum[c + 2 * channels] - grad;
            product[c] += q * (load(x + c) - mean);
            store(grad_x + c, grad + scale[c] * q);
          }
        }
        for (long c = 0; c < channels; ++c) sums[c] += products[c];
      }
      crew.sum(sums.data(), channels);
      double pull = 0;
      for (long c = 0; c < channels; ++c) pull += gain[c] * sums[c];
      const float slope = float(pull * inverse * inverse / double(shape.sample()));
#pragma omp simd
      for (long i = first; i < last; ++i) store(op.grad_x + i, load(op.grad_x + i) - slope * (load(op.x + i) - mean));
      if (crew.thread == 0)
        for (long c = 0; c < channels; ++c) all[b * channels + c] = factor * sums[c];
    };
  });
  for (long c = 0; c < channels; ++c) {
    double sum = 0;
    for (long b = 0; b < batch; ++b) sum += all[b * channels + c];
    op.grad_weight[c] = float(sum);
  }
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void pool_minus_self_##suffix(const T* x, T* out, long batch, long height, long width, long channels, \
                                           int transposed, int threads) { \
    stencil(x, out, batch, {height, width, channels}, transposed != 0, threads); \
  } \
  extern "C" void pool_residual_##suffix(const T* x, const float* weight, const float* residual_scale, \
                                         const float* factors, T* out, float* x_moments, float* moments, long batch, \
                                         long height, long width, long channels, float eps, float next_eps, \
                                         int threads) { \
    const float mean_scale = std::accumulate(residual_scale, residual_scale + channels, 0.0f) / float(channels); \
    const Shape shape{height, width, channels}; \
    residual(Residual<T>{x, weight, residual_scale, factors, out, x_moments, moments, shape, eps, next_eps, mean_scale}, \
             batch, threads); \
  } \
  extern "C" void pool_residual_backward_##suffix(const T* grad_out, const T* x, const float* weight, \
                                                  const float* factors, const float* moments, T* grad_x, \
                                                  float* grad_weight, long batch, long height, long width, \
                                                  long channels, int threads) { \
    const Shape shape{height, width, channels}; \
    residual_backward(ResidualBackward<T>{grad_out, x, weight, factors, moments, grad_x, grad_weight, shape}, batch, \
                      threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
