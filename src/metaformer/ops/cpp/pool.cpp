// PoolFormer's token mixing of x (batch, height, width, channels), with pool(x) the mean of the 3 x 3 neighbors inside:
//
//   pool_minus_self: out = pool(x) - x, or the transposed matrix times x, which is its gradient
//   pool_residual:   out = residual_scale * x + weight / sigma(x) * (pool(x) - x), moments = mean(out), 1 / sigma(out)
//
// mean and sigma are over a sample. A window's sum is taken of the sums of three rows, which its neighbors share.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "simd.h"

namespace {

// 1 / (how many of the three neighbors of `index` along an axis lie inside).
float share(long index, long length) { return 1.0f / float(1 + (index > 0) + (index + 1 < length)); }

// With S the sum over the window and D = diag(1 / count), pool = D S; its transpose S D divides before it sums. Counts
// are products of a row's and a column's.
template <class T>
void stencil(const T* x, T* out, long batch, long height, long width, long channels, bool transposed, int threads) {
  const long row = width * channels;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> memory(row + 2 * channels, 0.0f);  // sums over three rows, a column of zeros at either end
    float* column = memory.data() + channels;
#pragma omp for schedule(static)
    for (long line = 0; line < batch * height; ++line) {
      const long h = line % height;
      const T* here = x + line * row;
      const bool above = h > 0, below = h + 1 < height;
      const T *up = above ? here - row : here, *down = below ? here + row : here;
      const float middle = transposed ? share(h, height) : 1.0f;
      const float high = !above ? 0.0f : transposed ? share(h - 1, height) : 1.0f;
      const float low = !below ? 0.0f : transposed ? share(h + 1, height) : 1.0f;
      for (long w = 0; w < width; ++w) {
        const float factor = transposed ? share(w, width) : 1.0f;
        const long first = w * channels;
#pragma omp simd
        for (long c = 0; c < channels; ++c)
          column[first + c] =
              factor * (middle * load(here + first + c) + high * load(up + first + c) + low * load(down + first + c));
      }
      for (long w = 0; w < width; ++w) {
        const float factor = transposed ? 1.0f : share(h, height) * share(w, width);
        const float* sum = memory.data() + w * channels;  // columns w - 1, w, w + 1 lie side by side from here
        const long first = w * channels;
#pragma omp simd
        for (long c = 0; c < channels; ++c)
          store(out + line * row + first + c,
                factor * (sum[c] + sum[c + channels] + sum[c + 2 * channels]) - load(here + first + c));
      }
    }
  }
}

// Sums of distances from a pivot near the mean, and of their squares: squares of the numbers themselves would cancel.
struct Sums {
  double first = 0, second = 0;

  void add(const Sums& other) {
    first += other.first;
    second += other.second;
  }
};

template <class T>
Sums sums(const T* x, long count, float pivot) {
  Sums total;
  for (long start = 0; start < count; start += 4096) {  // short enough for float
    long end = std::min(count, start + 4096);
    float first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
    for (long i = start; i < end; ++i) {
      float distance = load(x + i) - pivot;
      first += distance;
      second += distance * distance;
    }
    total.add({first, second});
  }
  return total;
}

struct Moments {
  float mean, inverse_deviation;

  Moments(const Sums& total, double count, float pivot, float eps) {
    double offset = total.first / count;
    double variance = total.second / count - offset * offset;
    variance = variance < 0 ? 0 : variance;  // NaN stays NaN
    mean = float(pivot + offset);
    inverse_deviation = float(1 / std::sqrt(variance + eps));
  }
};

template <class T>
struct Residual {
  const T* x;
  const float *weight, *residual_scale;
  T* out;
  float* moments;
  long height, width, channels;
  float eps, next_eps;
  float mean_scale;  // of residual_scale
  long row() const { return width * channels; }
  long sample() const { return height * row(); }
};

// Memory of one thread: a row of sums over three rows, with a column of zeros at either end, and weight / sigma.
struct Buffers {
  std::vector<float> column, gain;
  Buffers(long width, long channels) : column((width + 2) * channels, 0.0f), gain(channels) {}
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

// Rows [first, last) of a sample's result, and the sums of what was written.
template <class T>
Sums mix(const Residual<T>& op, const T* x, T* y, long first, long last, float pivot, Buffers& buffers) {
  Sums total;
  const long channels = op.channels, row = op.row();
  const float *gain = buffers.gain.data(), *scale = op.residual_scale;
  for (long h = first; h < last; ++h) {
    const T* here = x + h * row;
    const T* above = h > 0 ? here - row : nullptr;
    const T* below = h + 1 < op.height ? here + row : nullptr;
    sum_rows(above, here, below, buffers.column.data() + channels, row);
    const long rows = 1 + (above != nullptr) + (below != nullptr);
    for (long w = 0; w < op.width; ++w) {
      const float share = 1.0f / float(rows * (1 + (w > 0) + (w + 1 < op.width)));
      const float* sum = buffers.column.data() + w * channels;  // columns w - 1, w, w + 1
      const T* token = here + w * channels;
      T* out = y + h * row + w * channels;
#pragma omp simd
      for (long c = 0; c < channels; ++c) {
        float value = load(token + c);
        float mean = (sum[c] + sum[c + channels] + sum[c + 2 * channels]) * share;
        store(out + c, scale[c] * value + gain[c] * (mean - value));
      }
    }
    total.add(sums(y + h * row, row, pivot));  // while the row is in the cache
  }
  return total;
}

// Sample b by `threads` threads, of which this is number `thread`; `parts` (2, threads) holds what each has summed.
template <class T>
void mix_sample(const Residual<T>& op, long b, int thread, int threads, Sums* parts, Buffers& buffers) {
  const long row = op.row(), sample = op.sample(), start = b * sample;
  const long first = op.height * thread / threads, last = op.height * (thread + 1) / threads;
  const T* x = op.x + start;
  T* y = op.out + start;

  auto reduce = [&](const Sums& own, Sums* all) {
    if (threads == 1) return own;
    all[thread] = own;
#pragma omp barrier
    Sums total;
    for (int i = 0; i < threads; ++i) total.add(all[i]);
    return total;
  };
  float pivot = load(x);
  Sums total = reduce(sums(x + first * row, (last - first) * row, pivot), parts);
  Moments before(total, double(sample), pivot, op.eps);
  for (long c = 0; c < op.channels; ++c) buffers.gain[c] = op.weight[c] * before.inverse_deviation;
  pivot = before.mean * op.mean_scale;  // pooling keeps means, so the branch adds about nothing to it
  total = reduce(mix(op, x, y, first, last, pivot, buffers), parts + threads);
  const Moments after(total, double(sample), pivot, op.next_eps);
  op.moments[2 * b] = after.mean;
  op.moments[2 * b + 1] = after.inverse_deviation;
}

// A thread takes whole samples, which its cache holds; those left over are split by rows among all threads.
template <class T>
void residual(const Residual<T>& op, long batch, int wanted) {
  std::vector<Sums> parts(2 * wanted);
#pragma omp parallel num_threads(wanted)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const long whole = batch - batch % threads;
    Buffers buffers(op.width, op.channels);
    for (long b = thread; b < whole; b += threads) mix_sample(op, b, 0, 1, parts.data(), buffers);
    for (long b = whole; b < batch; ++b) {
      mix_sample(op, b, thread, threads, parts.data(), buffers);
#pragma omp barrier  // `parts` is written anew
    }
  }
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void pool_minus_self_##suffix(const T* x, T* out, long batch, long height, long width, long channels, \
                                           int transposed, int threads) { \
    stencil(x, out, batch, height, width, channels, transposed != 0, threads); \
  } \
  extern "C" void pool_residual_##suffix(const T* x, const float* weight, const float* residual_scale, T* out, \
                                         float* moments, long batch, long height, long width, long channels, \
                                         float eps, float next_eps, int threads) { \
    const float mean_scale = std::accumulate(residual_scale, residual_scale + channels, 0.0f) / float(channels); \
    residual(Residual<T>{x, weight, residual_scale, out, moments, height, width, channels, eps, next_eps, mean_scale}, \
             batch, threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
