// PoolFormer's token mixing with its norm, scale and shortcut, and what the next norm needs: of tokens (B, H, W, C),
//   y = keep * x + scale / deviation(x) * (mean of the 3 by 3 neighbours inside the map - x)
//   moments = mean(y), 1 / deviation(y)
// A thread takes a sample as a whole, which its cache holds; samples that are too few are split by rows.
#include <omp.h>

#include <numeric>
#include <vector>

#include "moments.h"

namespace {

template <class T>
struct Map {
  const T* x;
  const float *scale, *keep;
  T* y;
  float* moments;
  long height, width, channels;
  float eps, next_eps;
  float kept;  // mean of `keep`
  long row() const { return width * channels; }
  long sample() const { return height * row(); }
};

// Room of one thread: a row's sums over three rows with a column of zeros at either end, and the gains.
struct Room {
  std::vector<float> column, gain;
  Room(long width, long channels) : column((width + 2) * channels, 0.0f), gain(channels) {}
};

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

// Rows of y, and their sums as distances from `near`.
template <class T>
Sums mix(const Map<T>& map, const T* x, T* y, long first, long last, float near, Room& room) {
  Sums total;
  const long channels = map.channels, row = map.row();
  const float *gain = room.gain.data(), *keep = map.keep;
  for (long h = first; h < last; ++h) {
    const T* here = x + h * row;
    const T* above = h > 0 ? here - row : nullptr;
    const T* below = h + 1 < map.height ? here + row : nullptr;
    sum_rows(above, here, below, room.column.data() + channels, row);
    const long rows = 1 + (above != nullptr) + (below != nullptr);
    for (long w = 0; w < map.width; ++w) {
      const float share = 1.0f / float(rows * (1 + (w > 0) + (w + 1 < map.width)));
      const float* sum = room.column.data() + w * channels;
      const T* token = here + w * channels;
      T* out = y + h * row + w * channels;
#pragma omp simd
      for (long c = 0; c < channels; ++c) {
        float value = load(token + c);
        float mean = (sum[c] + sum[c + channels] + sum[c + 2 * channels]) * share;
        store(out + c, keep[c] * value + gain[c] * (mean - value));
      }
    }
    total.add(sums(y + h * row, row, near));  // while the row is in the cache
  }
  return total;
}

// One sample by `threads` threads, of which this is number `thread`; `parts` holds what each has summed.
template <class T>
void mix_sample(const Map<T>& map, long b, int thread, int threads, Sums* parts, Room& room) {
  const long row = map.row(), sample = map.sample(), start = b * sample;
  const long first = map.height * thread / threads, last = map.height * (thread + 1) / threads;
  const T* x = map.x + start;
  T* y = map.y + start;

  auto together = [&](const Sums& own, Sums* of) {
    if (threads == 1) return own;
    of[thread] = own;
#pragma omp barrier
    Sums all;
    for (int i = 0; i < threads; ++i) all.add(of[i]);
    return all;
  };
  float near = load(x);
  Sums total = together(sums(x + first * row, (last - first) * row, near), parts);
  Moments before(total, double(sample), near, map.eps);
  for (long c = 0; c < map.channels; ++c) room.gain[c] = map.scale[c] * before.inverse_deviation;
  near = before.mean * map.kept;  // pooling keeps means
  total = together(mix(map, x, y, first, last, near, room), parts + threads);
  const Moments after(total, double(sample), near, map.next_eps);
  map.moments[2 * b] = after.mean;
  map.moments[2 * b + 1] = after.inverse_deviation;
}

template <class T>
void run(const Map<T>& map, long batch, int wanted) {
  std::vector<Sums> parts(2 * wanted);
#pragma omp parallel num_threads(wanted)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const long whole = batch - batch % threads;
    Room room(map.width, map.channels);
    for (long b = thread; b < whole; b += threads) mix_sample(map, b, 0, 1, parts.data(), room);
    for (long b = whole; b < batch; ++b) {
      mix_sample(map, b, thread, threads, parts.data(), room);
#pragma omp barrier  // `parts` is written anew
    }
  }
}

}  // namespace

#define POOL_NORM(name, T) \
  extern "C" void name(const T* x, const float* scale, const float* keep, T* y, float* moments, long batch, \
                       long height, long width, long channels, float eps, float next_eps, int threads) { \
    float kept = std::accumulate(keep, keep + channels, 0.0f) / float(channels); \
    run(Map<T>{x, scale, keep, y, moments, height, width, channels, eps, next_eps, kept}, batch, threads); \
  }
POOL_NORM(pool_norm_float32, float)
POOL_NORM(pool_norm_bfloat16, bfloat16)
