// CycleMLP's token mixing of x (batch, height, width, channels), whose channels are read at most one position away:
//
//   out = (sum over i of branch_weights[i] * (shift_i(x) W_i' + b_i)) W' + b + residual_scale * residual
//
// where shift_i moves channel c by offsets[c] along the width, along the height, or not, with zeros from outside.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "matmul.h"

namespace {

constexpr long MIX_CACHE = 400 << 10;  // bytes of each MiB of the L2 cache for sums, inputs and mixed tokens

struct Shape {
  long batch, height, width, channels;
  long row() const { return width * channels; }
  long positions() const { return height * width; }
};

// out[c] = the channel of the token offsets[c] positions along an axis on which this is token `index` of `length`, and
// the next one lies `step` elements on.
template <class T>
void gather(const T* token, long step, long index, long length, const int* offsets, long channels, const T* zeros,
            T* out) {
  const T* before = index > 0 ? token - step : zeros;
  const T* after = index + 1 < length ? token + step : zeros;
#pragma omp simd
  for (long c = 0; c < channels; ++c) out[c] = offsets[c] == 0 ? token[c] : offsets[c] > 0 ? after[c] : before[c];
}

// out = x with channel c read offsets[c] positions away along the height or the width, zeros outside.
template <class T>
void shift(const T* x, const int* offsets, T* out, const Shape& shape, bool along_height, int threads) {
  const long channels = shape.channels, step = along_height ? shape.row() : channels;
  const std::vector<T> zeros(channels, T(0));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < shape.batch * shape.height; ++line)
    for (long w = 0; w < shape.width; ++w) {
      const long token = line * shape.row() + w * channels, index = along_height ? line % shape.height : w;
      const long length = along_height ? shape.height : shape.width;
      gather(x + token, step, index, length, offsets, channels, zeros.data(), out + token);
    }
}

// out (batch, 3, channels): the means of x shifted along the width, along the height, and of x. A shift by +1 loses the
// first column (row), one by -1 the last: mean = (sum over all - sum over the lost one) / positions.
template <class T>
void means(const T* x, const int* offsets, T* out, const Shape& shape, int threads) {
  const long channels = shape.channels, height = shape.height, row = shape.row();
  std::vector<float> sums(shape.batch * height * channels, 0.0f);  // of each row
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long line = 0; line < shape.batch * height; ++line) {
    float* sum = sums.data() + line * channels;
    for (long w = 0; w < shape.width; ++w) {
#pragma omp simd
      for (long c = 0; c < channels; ++c) sum[c] += load(x + line * row + w * channels + c);
    }
  }
  const float share = 1 / float(shape.positions());
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long b = 0; b < shape.batch; ++b) {
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
      const float lost_column = offsets[c] == 0 ? 0 : offsets[c] > 0 ? left[c] : right[c];
      const float lost_row = offsets[c] == 0 ? 0 : offsets[c] > 0 ? sum[c] : bottom[c];
      store(mean + c, (whole[c] - lost_column) * share);
      store(mean + channels + c, (whole[c] - lost_row) * share);
      store(mean + 2 * channels + c, whole[c] * share);
    }
  }
}

// out (batch, 3, channels): softmax over the last of logits (batch, channels, 3).
template <class T>
void softmax(const T* logits, float* out, long batch, long channels) {
  for (long b = 0; b < batch; ++b)
    for (long c = 0; c < channels; ++c) {
      const T* three = logits + (b * channels + c) * 3;
      const float most = std::max({load(three), load(three + 1), load(three + 2)});
      float total = 0, part[3];
      for (int i = 0; i < 3; ++i) total += part[i] = std::exp(load(three + i) - most);
      for (int i = 0; i < 3; ++i) out[(b * 3 + i) * channels + c] = part[i] / total;
    }
}

// Takes a block of tokens at a time, so that all that lies between the four products stays in the L2 cache: sums
// (most, stride) as floats, then the three shifted inputs and the mixed tokens, each (most, stride) of T.
template <class T>
void mix(const T* x, const int* offsets, const float* branch_weights, const PackedWeight<T> (&branches)[3],
         const PackedWeight<T>& proj, const Output<T>& output, const Shape& shape, int threads) {
  const long channels = shape.channels, stride = padded(channels), positions = shape.positions();
  const long bytes = stride * long(4 * sizeof(T) + sizeof(float)), most = block_rows<T>(MIX_CACHE, bytes);
  const std::vector<T> zeros(channels, T(0));
  const long tokens = shape.batch * positions;
  parallel_rows<T>(tokens, bytes, most, threads, [&](const Team& team, char* block, long from, long rows) {
    float* sums = reinterpret_cast<float*>(block);
    T* inputs[3];
    for (int i = 0; i < 3; ++i) inputs[i] = reinterpret_cast<T*>(sums + most * stride) + i * most * stride;
    T* mixed = inputs[2] + most * stride;
    const Range own = team.share(rows);
    for (long r = own.first; r < own.last; ++r) {
      const long position = (from + r) % positions, h = position / shape.width, w = position % shape.width;
      const T* token = x + (from + r) * channels;
      gather(token, channels, w, shape.width, offsets, channels, zeros.data(), inputs[0] + r * stride);
      gather(token, shape.row(), h, shape.height, offsets, channels, zeros.data(), inputs[1] + r * stride);
      std::copy_n(token, channels, inputs[2] + r * stride);
    }
    team.wait();
    const Range panels = team.share(branches[0].panels());
    for (int i = 0; i < 3; ++i)
      matmul(inputs[i], rows, stride, branches[i], panels, [&](long r, long c, vec sum) {
        if (r >= rows) return;
        sum *= load_vec(branch_weights + ((from + r) / positions * 3 + i) * channels + c);
        if (i > 0) sum += load_vec(sums + r * stride + c);
        if (i < 2)
          store_vec(sums + r * stride + c, sum);
        else
          store_vec(mixed + r * stride + c, sum);
      });
    team.wait();
    matmul(mixed, rows, stride, proj, team.share(proj.panels()), [&](long r, long c, vec sum) {
      if (r < rows) output(from + r, c, sum);
    });
  });
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void cycle_shift_##suffix(const T* x, const int* offsets, T* out, long batch, long height, long width, \
                                       long channels, int along_height, int threads) { \
    shift(x, offsets, out, {batch, height, width, channels}, along_height != 0, threads); \
  } \
  extern "C" void cycle_means_##suffix(const T* x, const int* offsets, T* out, long batch, long height, long width, \
                                       long channels, int threads) { \
    means(x, offsets, out, {batch, height, width, channels}, threads); \
  } \
  extern "C" void cycle_softmax_##suffix(const T* logits, float* out, long batch, long channels, int threads) { \
    softmax(logits, out, batch, channels); \
  } \
  extern "C" void cycle_mix_##suffix( \
      const T* x, const int* offsets, const float* branch_weights, const T* w_width, const float* b_width, \
      const T* w_height, const float* b_height, const T* w_plain, const float* b_plain, const T* w_proj, \
      const float* b_proj, const T* residual, const float* residual_scale, T* out, long batch, long height, \
      long width, long channels, int threads) { \
    const PackedWeight<T> branches[3] = {{w_width, b_width, channels, channels}, \
                                         {w_height, b_height, channels, channels}, \
                                         {w_plain, b_plain, channels, channels}}; \
    mix(x, offsets, branch_weights, branches, {w_proj, b_proj, channels, channels}, \
        Output<T>{residual, residual_scale, out, channels}, {batch, height, width, channels}, threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
