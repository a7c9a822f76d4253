// CycleMLP's mixing of tokens (B, H, W, C) whose channels are read one place away at most: the means that its shares
// are made of, the shares, and the weighted sum of three products with the one product more that follows.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "product.h"

namespace {

struct Size {
  long batch, height, width, channels;
  long row() const { return width * channels; }
  long positions() const { return height * width; }
};

// One token, each channel of which is read offset[c] tokens away; `step` leads to the next. Zeros lie outside.
template <class T>
void pick(const T* here, long step, long index, long end, const int* offset, long channels, const T* zeros, T* out) {
  const T* before = index > 0 ? here - step : zeros;
  const T* after = index + 1 < end ? here + step : zeros;
#pragma omp simd
  for (long c = 0; c < channels; ++c) out[c] = offset[c] == 0 ? here[c] : offset[c] > 0 ? after[c] : before[c];
}

// Means (B, 3, C) of the map shifted along the width, along the height, and as it is: what a shift pushes over the
// border is missing.
template <class T>
void means(const T* x, const int* offset, T* out, const Size& size, int threads) {
  const long channels = size.channels, height = size.height, row = size.row();
  std::vector<float> sums(size.batch * height * channels, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < size.batch * height; ++line) {
    float* sum = sums.data() + line * channels;
    for (long w = 0; w < size.width; ++w) {
#pragma omp simd
      for (long c = 0; c < channels; ++c) sum[c] += load(x + line * row + w * channels + c);
    }
  }
  const float share = 1 / float(size.positions());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long b = 0; b < size.batch; ++b) {
    const float* sum = sums.data() + b * height * channels;
    std::vector<float> whole(channels, 0.0f), left(channels, 0.0f), right(channels, 0.0f);
    for (long h = 0; h < height; ++h) {
      const T* first = x + (b * height + h) * row;
      const T* last = first + row - channels;
#pragma omp simd
      for (long c = 0; c < channels; ++c) {
        whole[c] += sum[h * channels + c];
        left[c] += load(first + c);
        right[c] += load(last + c);
      }
    }
    const float* bottom = sum + (height - 1) * channels;
    T* mean = out + b * 3 * channels;
    for (long c = 0; c < channels; ++c) {
      const float beside = offset[c] == 0 ? 0 : offset[c] > 0 ? left[c] : right[c];
      const float above = offset[c] == 0 ? 0 : offset[c] > 0 ? sum[c] : bottom[c];
      store(mean + c, (whole[c] - beside) * share);
      store(mean + channels + c, (whole[c] - above) * share);
      store(mean + 2 * channels + c, whole[c] * share);
    }
  }
}

// Softmax over the last of (B, C, 3), as (B, 3, C).
template <class T>
void shares(const T* x, float* out, long batch, long channels, int) {
  for (long b = 0; b < batch; ++b)
    for (long c = 0; c < channels; ++c) {
      const T* of = x + (b * channels + c) * 3;
      const float most = std::max({load(of), load(of + 1), load(of + 2)});
      float total = 0, part[3];
      for (int i = 0; i < 3; ++i) total += part[i] = std::exp(load(of + i) - most);
      for (int i = 0; i < 3; ++i) out[(b * 3 + i) * channels + c] = part[i] / total;
    }
}

template <class T>
void mix(const T* x, const int* offset, const float* share, const Layer<T> (&layers)[3], const Layer<T>& last,
         const Joined<T>& joined, const Size& size, int threads) {
  const long channels = size.channels, stride = padded(channels), positions = size.positions();
  const long bytes = stride * long(4 * sizeof(T) + sizeof(float)), most = std::max(1L, (400 << 10) / bytes / ROWS);
  const std::vector<T> zeros(channels, T(0));
  by_rows(size.batch * positions, bytes, most, threads, [&](const Team& team, char* room, long from, long rows) {
    float* sums = reinterpret_cast<float*>(room);
    T* maps[3];
    for (int i = 0; i < 3; ++i) maps[i] = reinterpret_cast<T*>(sums + most * ROWS * stride) + i * most * ROWS * stride;
    T* mixed = maps[2] + most * ROWS * stride;
    const Part fetched = team.part(rows);
    for (long r = fetched.first; r < fetched.last; ++r) {
      const long place = (from + r) % positions, h = place / size.width, w = place % size.width;
      const T* token = x + (from + r) * channels;
      pick(token, channels, w, size.width, offset, channels, zeros.data(), maps[0] + r * stride);
      pick(token, size.row(), h, size.height, offset, channels, zeros.data(), maps[1] + r * stride);
      std::copy_n(token, channels, maps[2] + r * stride);
    }
    team.wait();
    const Part columns = team.part(layers[0].panels());
    for (int i = 0; i < 3; ++i)
      multiply(maps[i], rows, stride, layers[i], columns, [&](long r, long c, lanes sum) {
        if (r >= rows) return;
        sum *= read(share + ((from + r) / positions * 3 + i) * channels + c);
        if (i > 0) sum += read(sums + r * stride + c);
        if (i < 2)
          write(sums + r * stride + c, sum);
        else
          write(mixed + r * stride + c, sum);
      });
    team.wait();
    multiply(mixed, rows, stride, last, team.part(last.panels()), [&](long r, long c, lanes sum) {
      if (r < rows) joined(from + r, c, sum);
    });
  });
}

}  // namespace

#define CYCLE(T, suffix) \
  extern "C" void cycle_means_##suffix(const T* x, const int* offset, T* out, long batch, long height, long width, \
                                       long channels, int threads) { \
    means(x, offset, out, {batch, height, width, channels}, threads); \
  } \
  extern "C" void cycle_shares_##suffix(const T* x, float* out, long batch, long channels, int threads) { \
    shares(x, out, batch, channels, threads); \
  } \
  extern "C" void cycle_mix_##suffix(const T* x, const int* offset, const float* share, const T* of_width, \
                                     const float* width_bias, const T* of_height, const float* height_bias, \
                                     const T* plain, const float* plain_bias, const T* weight, const float* bias, \
                                     const T* past, const float* keep, T* out, long batch, long height, long width, \
                                     long channels, int threads) { \
    const Layer<T> layers[3] = {{of_width, width_bias, channels, channels}, \
                                {of_height, height_bias, channels, channels}, \
                                {plain, plain_bias, channels, channels}}; \
    mix(x, offset, share, layers, {weight, bias, channels, channels}, Joined<T>{past, keep, out, channels}, \
        {batch, height, width, channels}, threads); \
  }
CYCLE(float, float32)
CYCLE(bfloat16, bfloat16)
