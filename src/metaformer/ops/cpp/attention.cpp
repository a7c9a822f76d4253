// out = softmax(q k' / sqrt(D)) v of each head, some queries at a time, whose scores stay in the cache.
//
// qkv is (batch, N, 3, heads, D), out (batch, N, heads, D).
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "matmul.h"

namespace {

long rounded_up(long count, long whole) { return (count + whole - 1) / whole * whole; }

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
  for (; i + PANEL <= stride; i += PANEL)
    score_tile<PANEL_VECS>(queries, keys + i, scores + i, head_dim, stride);
  for (; i < stride; i += LANES) score_tile<1>(queries, keys + i, scores + i, head_dim, stride);
}

// Replaces a row of scores by exp(score - max), the padding by 0, and returns 1 / sum.
float exponentiate(float* row, long tokens, long stride) {
  std::fill(row + tokens, row + stride, -std::numeric_limits<float>::infinity());
  vec most = load_vec(row);
  for (long i = LANES; i < stride; i += LANES) most = max_vec(most, load_vec(row + i));
  const float highest = reduce(most, max_vec);
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

// One head: keys are transposed to (head_dim, stride), stride being `tokens` rounded up to LANES, and values copied to
// (tokens, head_dim), both as floats.
template <class T>
struct Head {
  static long queries_at_once() { return ROWS; }
  const long tokens, head_dim, width, stride;
  std::vector<float> keys, values, queries, scores;

  Head(long tokens_, long head_dim_, long width_)
      : tokens(tokens_), head_dim(head_dim_), width(width_), stride(rounded_up(tokens, LANES)),
        keys(head_dim * stride), values(tokens * head_dim), queries(ROWS * head_dim), scores(ROWS * stride) {}

  // Of token i, q is 3 i rows of `width` numbers from `first`, k 3 i + 1, v 3 i + 2.
  void read(const T* first) {
    for (long i = 0; i < stride; i += LANES)
      for (long d = 0; d < head_dim; d += LANES) {
        vec rows[LANES] = {};  // zeros beyond `tokens`
        for (long j = 0; j < std::min<long>(LANES, tokens - i); ++j) {
          const T* key = first + (3 * (i + j) + 1) * width + d;
          rows[j] = load_vec(key);
          store_vec(values.data() + (i + j) * head_dim + d, load_vec(key + width));
        }
        transpose(rows);
        for (long j = 0; j < LANES; ++j) store_vec(keys.data() + (d + j) * stride + i, rows[j]);
      }
  }

  // out (rows, width), of the head alone, for the queries of tokens from `from` on.
  void attend(const T* from, int rows, T* out) {
    const float scale = 1 / std::sqrt(float(head_dim));
    for (int r = 0; r < rows; ++r)
      for (long d = 0; d < head_dim; ++d) queries[r * head_dim + d] = scale * load(from + 3 * r * width + d);
    score(queries.data(), keys.data(), scores.data(), head_dim, stride);
    float inverse_sums[ROWS];
    for (int r = 0; r < rows; ++r) inverse_sums[r] = exponentiate(scores.data() + r * stride, tokens, stride);
    long d = 0;
    for (; d + 2 * LANES <= head_dim; d += 2 * LANES)
      weighted_sum<2>(scores.data(), inverse_sums, values.data() + d, out + d, tokens, head_dim, stride, width, rows);
    for (; d < head_dim; d += LANES)
      weighted_sum<1>(scores.data(), inverse_sums, values.data() + d, out + d, tokens, head_dim, stride, width, rows);
  }
};

// One head by products of bfloat16: keys and values are packed as weights, (stride, head_dim) and (head_dim, stride),
// stride being `tokens` rounded up to the depth of a tile. Of values beyond `tokens` it keeps zeros.
struct PackedHead {
  static constexpr long QUERIES = 2 * TILE_ROWS;  // for which there is room
  static long queries_at_once() { return QUERIES / group_rows<bfloat16>() * group_rows<bfloat16>(); }
  static constexpr long STEP = Multiply<bfloat16>::STEP;
  const Ready<bfloat16> ready;
  const long tokens, head_dim, width, stride;
  std::vector<bfloat16> keys, values, queries, weights;
  std::vector<float> scores, zeros;

  PackedHead(long tokens_, long head_dim_, long width_)
      : tokens(tokens_), head_dim(head_dim_), width(width_), stride(rounded_up(tokens, TILE_DEPTH)),
        keys(head_dim * stride), values(head_dim * stride), queries(QUERIES * padded(head_dim)),
        weights(QUERIES * padded(stride)), scores(QUERIES * stride), zeros(std::max(stride, head_dim)) {}

  PackedWeight<bfloat16> packed_keys() const { return {keys.data(), zeros.data(), head_dim, stride}; }
  PackedWeight<bfloat16> packed_values() const { return {values.data(), zeros.data(), stride, head_dim}; }

  void read(const bfloat16* first) {
    const PackedWeight<bfloat16> by_key = packed_keys(), by_value = packed_values();
    for (long i = 0; i < tokens; ++i) {
      const bfloat16* key = first + (3 * i + 1) * width;
      const long start = by_key.index(i, 0), step = by_key.index(i, STEP) - start;
      for (long d = 0; d < head_dim; d += STEP) std::copy_n(key + d, STEP, keys.data() + start + d / STEP * step);
    }
    for (long i = 0; i < tokens; i += STEP)
      for (long d = 0; d < head_dim; d += LANES) {
        const bfloat16* value = first + (3 * i + 2) * width + d;
        uvec pair = bit_cast<uvec>(load_vec(value)) >> 16;
        if (i + 1 < tokens) pair |= bit_cast<uvec>(load_vec(value + 3 * width));
        std::memcpy(values.data() + by_value.index(d, i), &pair, sizeof pair);
      }
  }

  void attend(const bfloat16* from, int rows, bfloat16* out) {
    const float scale = 1 / std::sqrt(float(head_dim));
    const PackedWeight<bfloat16> by_key = packed_keys(), by_value = packed_values();
    for (int r = 0; r < rows; ++r)
      std::copy_n(from + 3 * r * width, head_dim, queries.data() + r * padded(head_dim));
    matmul(queries.data(), rows, padded(head_dim), by_key, Range(by_key.panels(), 0, 1),
           [&](long r, long c, vec sum) { store_vec(scores.data() + r * stride + c, sum * scale); });
    float inverse_sums[QUERIES];
    for (int r = 0; r < rows; ++r) {
      float* row = scores.data() + r * stride;
      inverse_sums[r] = exponentiate(row, tokens, stride);
      for (long i = 0; i < stride; i += LANES) store_vec(weights.data() + r * padded(stride) + i, load_vec(row + i));
    }
    matmul(weights.data(), rows, padded(stride), by_value, Range(by_value.panels(), 0, 1),
           [&](long r, long c, vec sum) {
      if (r < rows) store_vec(out + r * width + c, sum * inverse_sums[r]);
    });
  }
};

template <class Head, class T>
void run(const T* qkv, T* out, long batch, long tokens, long heads, long head_dim, int threads) {
  const long at_once = Head::queries_at_once(), blocks = (tokens + at_once - 1) / at_once;
  // a head's queries are split where there are fewer heads than threads; each part copies keys and values again
  const long parts = std::min(blocks, (threads + batch * heads - 1) / (batch * heads));
  const long width = heads * head_dim;
#pragma omp parallel num_threads(threads)
  {
    Head one(tokens, head_dim, width);
#pragma omp for schedule(static)
    for (long task = 0; task < batch * heads * parts; ++task) {
      const long part = task % parts, sample = task / parts / heads, head = task / parts % heads;
      const T* first = qkv + sample * tokens * 3 * width + head * head_dim;
      one.read(first);
      for (long block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
        const long from = block * at_once;
        one.attend(first + 3 * from * width, int(std::min(at_once, tokens - from)),
                   out + (sample * tokens + from) * width + head * head_dim);
      }
    }
  }
}

template <class T>
void attention(const T* qkv, T* out, long batch, long tokens, long heads, long head_dim, int threads) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, bfloat16>)
    return run<PackedHead>(qkv, out, batch, tokens, heads, head_dim, threads);
#endif
  run<Head<T>>(qkv, out, batch, tokens, heads, head_dim, threads);
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void attention_##suffix(const T* qkv, T* out, long batch, long tokens, long heads, long head_dim, \
                                     int threads) { \
    attention(qkv, out, batch, tokens, heads, head_dim, threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
