// out = softmax(q k' / sqrt(D)) v of each head, ROWS queries at a time, whose scores (ROWS, N) stay in the cache.
//
// qkv is (batch, N, 3, heads, D), out (batch, N, heads, D). Of a head, keys are transposed to (D, stride), stride
// being N rounded up to LANES, and values copied to (N, D), both as floats.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "simd.h"

namespace {

constexpr int ROWS = 6;             // queries at a time: ROWS x VECS sums fill the registers
constexpr int VECS = WIDE ? 4 : 2;  // vectors of keys at a time

// scores[r][i] = sum over d of queries[r][d] * keys[d][i], for COUNT vectors of keys i.
template <int COUNT>
void score_tile(const float* queries, const float* keys, float* scores, long head_dim, long stride) {
  vec sum[ROWS][COUNT] = {};
  for (long d = 0; d < head_dim; ++d) {
    vec key[COUNT];
    for (int v = 0; v < COUNT; ++v) key[v] = load_vec(keys + d * stride + v * LANES);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < COUNT; ++v) sum[r][v] += queries[r * head_dim + d] * key[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < COUNT; ++v) store_vec(scores + r * stride + v * LANES, sum[r][v]);
}

void score(const float* queries, const float* keys, float* scores, long head_dim, long stride) {
  long i = 0;
  for (; i + VECS * LANES <= stride; i += VECS * LANES)
    score_tile<VECS>(queries, keys + i, scores + i, head_dim, stride);
  for (; i < stride; i += LANES) score_tile<1>(queries, keys + i, scores + i, head_dim, stride);
}

// Replaces a row of scores by exp(score - max), the padding by 0, and returns 1 / sum.
float exponentiate(float* row, long tokens, long stride) {
  std::fill(row + tokens, row + stride, -std::numeric_limits<float>::infinity());
  vec most = load_vec(row);
  for (long i = LANES; i < stride; i += LANES) most = max_vec(most, load_vec(row + i));
  float highest = most[0];
  for (int i = 1; i < LANES; ++i) highest = std::max(highest, most[i]);
  vec sum = {};
  for (long i = 0; i < stride; i += LANES) {
    vec value = exp_vec(load_vec(row + i) - highest);
    sum += value;
    store_vec(row + i, value);
  }
  return 1 / sum_lanes(sum);
}

// out[r][c] = inverse_sums[r] * sum over i of weights[r][i] * values[i][c], for COUNT vectors of channels c.
template <int COUNT, class T>
void weighted_sum(const float* weights, const float* inverse_sums, const float* values, T* out, long tokens,
                  long head_dim, long stride, long out_stride, int rows) {
  vec sum[ROWS][COUNT] = {};
  for (long i = 0; i < tokens; ++i) {
    vec value[COUNT];
    for (int v = 0; v < COUNT; ++v) value[v] = load_vec(values + i * head_dim + v * LANES);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < COUNT; ++v) sum[r][v] += weights[r * stride + i] * value[v];
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < COUNT; ++v) store_vec(out + r * out_stride + v * LANES, sum[r][v] * inverse_sums[r]);
}

template <class T>
void run(const T* qkv, T* out, long batch, long tokens, long heads, long head_dim, int threads) {
  const long stride = (tokens + LANES - 1) / LANES * LANES, blocks = (tokens + ROWS - 1) / ROWS;
  // a head's queries are split where there are fewer heads than threads; each part copies keys and values again
  const long parts = std::min(blocks, (threads + batch * heads - 1) / (batch * heads));
  const long width = heads * head_dim;
  const float scale = 1 / std::sqrt(float(head_dim));
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> keys(head_dim * stride), values(tokens * head_dim), queries(ROWS * head_dim),
        scores(ROWS * stride);
#pragma omp for schedule(static)
    for (long task = 0; task < batch * heads * parts; ++task) {
      const long part = task % parts, sample = task / parts / heads, head = task / parts % heads;
      // of token i, q is 3 i rows of `width` numbers from here, k 3 i + 1, v 3 i + 2
      const T* first = qkv + sample * tokens * 3 * width + head * head_dim;
      for (long i = 0; i < tokens; ++i)
        for (long d = 0; d < head_dim; ++d) {
          keys[d * stride + i] = load(first + (3 * i + 1) * width + d);
          values[i * head_dim + d] = load(first + (3 * i + 2) * width + d);
        }
      for (long block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
        const long from = block * ROWS;
        const int rows = int(std::min<long>(ROWS, tokens - from));
        for (int r = 0; r < rows; ++r)
          for (long d = 0; d < head_dim; ++d)
            queries[r * head_dim + d] = scale * load(first + 3 * (from + r) * width + d);
        score(queries.data(), keys.data(), scores.data(), head_dim, stride);
        float inverse_sums[ROWS];
        for (int r = 0; r < rows; ++r) inverse_sums[r] = exponentiate(scores.data() + r * stride, tokens, stride);
        T* result = out + (sample * tokens + from) * width + head * head_dim;
        long d = 0;
        for (; d + 2 * LANES <= head_dim; d += 2 * LANES)
          weighted_sum<2>(scores.data(), inverse_sums, values.data() + d, result + d, tokens, head_dim, stride, width,
                          rows);
        for (; d < head_dim; d += LANES)
          weighted_sum<1>(scores.data(), inverse_sums, values.data() + d, result + d, tokens, head_dim, stride, width,
                          rows);
      }
    }
  }
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void attention_##suffix(const T* qkv, T* out, long batch, long tokens, long heads, long head_dim, \
                                     int threads) { \
    run(qkv, out, batch, tokens, heads, head_dim, threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
