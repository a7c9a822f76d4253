// softmax(q k' / sqrt(D)) v of each head: a few queries at a time, whose scores stay in the cache.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lanes.h"

namespace {

constexpr int ROWS = 6;               // queries at a time: with their TILE of keys they fill the registers
constexpr int TILE = WIDE ? 4 : 2;    // vectors of keys at a time

// scores (ROWS, ...) of COUNT vectors of keys; queries (ROWS, depth), keys (depth, stride)
template <int COUNT>
void score(const float* queries, const float* keys, float* scores, long depth, long stride) {
  lanes sum[ROWS][COUNT] = {};
  for (long d = 0; d < depth; ++d) {
    lanes key[COUNT];
    for (int v = 0; v < COUNT; ++v) key[v] = read(keys + d * stride + v * LANES);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < COUNT; ++v) sum[r][v] += queries[r * depth + d] * key[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < COUNT; ++v) write(scores + r * stride + v * LANES, sum[r][v]);
}

void score_all(const float* queries, const float* keys, float* scores, long depth, long stride) {
  long at = 0;
  for (; at + TILE * LANES <= stride; at += TILE * LANES)
    score<TILE>(queries, keys + at, scores + at, depth, stride);
  for (; at < stride; at += LANES) score<1>(queries, keys + at, scores + at, depth, stride);
}

// Replaces a row by exp(row - max), and gives one over its sum.
float weigh(float* row, long tokens, long stride) {
  std::fill(row + tokens, row + stride, -std::numeric_limits<float>::infinity());
  lanes most = read(row);
  for (long at = LANES; at < stride; at += LANES) most = larger(most, read(row + at));
  float highest = most[0];
  for (int i = 1; i < LANES; ++i) highest = std::max(highest, most[i]);
  lanes sum = {};
  for (long at = 0; at < stride; at += LANES) {
    lanes here = exponential(read(row + at) - highest);
    sum += here;
    write(row + at, here);
  }
  return 1 / total(sum);
}

// COUNT vectors of each query's weighted sum of values (tokens, depth)
template <int COUNT, class T>
void gather(const float* weights, const float* factors, const float* values, T* out, long tokens, long depth,
            long stride, long step, int rows) {
  lanes sum[ROWS][COUNT] = {};
  for (long i = 0; i < tokens; ++i) {
    lanes value[COUNT];
    for (int v = 0; v < COUNT; ++v) value[v] = read(values + i * depth + v * LANES);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < COUNT; ++v) sum[r][v] += weights[r * stride + i] * value[v];
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < COUNT; ++v) write(out + r * step + v * LANES, sum[r][v] * factors[r]);
}

template <class T>
void run(const T* qkv, T* out, long batch, long tokens, long heads, long depth, int threads) {
  const long stride = (tokens + LANES - 1) / LANES * LANES, blocks = (tokens + ROWS - 1) / ROWS;
  const long parts = std::min(blocks, (threads + batch * heads - 1) / (batch * heads));
  const long width = heads * depth;
  const float scale = 1 / std::sqrt(float(depth));
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> keys(depth * stride), values(tokens * depth), queries(ROWS * depth), scores(ROWS * stride);
#pragma omp for schedule(static)
    for (long task = 0; task < batch * heads * parts; ++task) {
      const long part = task % parts, sample = task / parts / heads, head = task / parts % heads;
      const T* first = qkv + sample * tokens * 3 * width + head * depth;
      for (long i = 0; i < tokens; ++i)
        for (long d = 0; d < depth; ++d) {
          keys[d * stride + i] = load(first + (3 * i + 1) * width + d);
          values[i * depth + d] = load(first + (3 * i + 2) * width + d);
        }
      for (long block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
        const long from = block * ROWS;
        const int rows = int(std::min<long>(ROWS, tokens - from));
        for (int r = 0; r < rows; ++r)
          for (long d = 0; d < depth; ++d)
            queries[r * depth + d] = scale * load(first + 3 * (from + r) * width + d);
        score_all(queries.data(), keys.data(), scores.data(), depth, stride);
        float factors[ROWS];
        for (int r = 0; r < rows; ++r) factors[r] = weigh(scores.data() + r * stride, tokens, stride);
        T* place = out + (sample * tokens + from) * width + head * depth;
        long d = 0;
        for (; d + 2 * LANES <= depth; d += 2 * LANES)
          gather<2>(scores.data(), factors, values.data() + d, place + d, tokens, depth, stride, width, rows);
        for (; d < depth; d += LANES)
          gather<1>(scores.data(), factors, values.data() + d, place + d, tokens, depth, stride, width, rows);
      }
    }
  }
}

}  // namespace

#define ATTENTION(T, suffix) \
  extern "C" void attention_##suffix(const T* qkv, T* out, long batch, long tokens, long heads, long depth, \
                                     int threads) { \
    run(qkv, out, batch, tokens, heads, depth, threads); \
  }
ATTENTION(float, float32)
ATTENTION(bfloat16, bfloat16)
