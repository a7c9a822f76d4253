// A linear layer and an MLP of two, with the norm before them and the residual after them:
//
//   linear: out = act(norm(x) W' + b) + residual_scale * residual
//   mlp:    out = act(norm(x) W1' + b1) W2' + b2 + residual_scale * residual
//
// and what an MLP needs in training beside that: packed weights and the backward pass. Hidden
// activations are not written: a block of their rows at a time stays in the L2 cache.
#include <memory>

#include "matmul.h"

namespace {

// Bytes of each MiB of the L2 cache
constexpr long LINEAR_CACHE = 256 << 10;    // for input rows
constexpr long MLP_CACHE = 250 << 10;       // for hidden rows
constexpr long BACKWARD_CACHE = 600 << 10;  // for input and hidden rows, and their gradients

template <Act act, class T>
void linear(const Input<T>& x, const PackedWeight<T>& weight, const Output<T>& output, int threads) {
  const long stride = x.stride(), bytes = stride * long(sizeof(T)), most = block_rows<T>(LINEAR_CACHE, bytes);
  parallel_rows<T>(x.count, bytes, most, threads, [&](const Team& team, char* memory, long from, long rows) {
    T* block = reinterpret_cast<T*>(memory);  // (rows, stride)
    const Range own = team.share(rows);
    x.copy(from + own.first, from + own.last, block + own.first * stride);
    team.wait();
    matmul(block, rows, stride, weight, team.share(weight.panels()), [&](long r, long c, vec sum) {
      if (r < rows) output(from + r, c, activate<act, T>(sum));  // matmul rounds rows up
    });
  });
}

template <Act act, class T>
void mlp(const Input<T>& x, const PackedWeight<T>& w1, const PackedWeight<T>& w2, const Output<T>& output, T* pre_act,
         int threads) {
  const long narrow = x.stride(), wide = padded(w1.columns), most = block_rows<T>(MLP_CACHE, wide * long(sizeof(T)));
  const long bytes = (narrow + wide) * long(sizeof(T));
  parallel_rows<T>(x.count, bytes, most, threads, [&](const Team& team, char* memory, long from, long rows) {
    T* block = reinterpret_cast<T*>(memory);  // (most, narrow)
    T* hidden = block + most * narrow;        // (most, wide)
    const Range own = team.share(rows);
    x.copy(from + own.first, from + own.last, block + own.first * narrow);
    team.wait();
    matmul(block, rows, narrow, w1, team.share(w1.panels()), [&](long r, long c, vec sum) {
      if (pre_act && r < rows) store_vec(pre_act + (from + r) * w1.columns + c, sum);
      store_vec(hidden + r * wide + c, activate<act, T>(sum));
    });
    team.wait();
    matmul(hidden, rows, wide, w2, team.share(w2.panels()), [&](long r, long c, vec sum) {
      if (r < rows) output(from + r, c, sum);
    });
  });
}

// LANES numbers of two rows side by side, as products read two consecutive k.
inline uvec interleave(const bfloat16* first, const bfloat16* second) {
  hvec low, high;
  std::memcpy(&low, first, sizeof low);
  std::memcpy(&high, second, sizeof high);
  return __builtin_convertvector(low, uvec) | __builtin_convertvector(high, uvec) << 16;
}

// A weight whose element (column, k) lies at column * across + k * down, one of which is 1, so that it can be read as its
// transpose, and what it is multiplied by: a number for each column or each k, or null, which is 1.
struct Source {
  const float* weight;
  long across, down;
  const float *column_scale, *depth_scale;
};

inline void store_rows(const vec (&rows)[LANES], float* out, long width) {
  for (int i = 0; i < LANES; ++i) store_vec(out + i * width, rows[i]);
}

inline void store_rows(const vec (&rows)[LANES], bfloat16* out, long width) {
  for (int i = 0; i < LANES; i += 2) {
    bfloat16 low[LANES], high[LANES];
    store_vec(low, rows[i]);
    store_vec(high, rows[i + 1]);
    const uvec pairs = interleave(low, high);
    std::memcpy(out + i * width, &pairs, sizeof pairs);
  }
}

// Packs panels of a weight, both of whose sides are whole vectors.
template <class T>
void pack(const Source& from, Range panels, const PackedWeight<T>& packed, T* out) {
  const long whole = packed.columns / PANEL;
  for (long p = panels.first; p < panels.last; ++p) {
    const bool narrow = p >= whole;
    const long start = narrow ? whole * PANEL + (p - whole) * LANES : p * PANEL, width = narrow ? LANES : PANEL;
    for (long k = 0; k < packed.depth; k += LANES)
      for (long column = start; column < start + width; column += LANES) {
        const float* block = from.weight + column * from.across + k * from.down;
        vec rows[LANES];
        for (int i = 0; i < LANES; ++i) rows[i] = load_vec(block + i * (from.down == 1 ? from.across : from.down));
        if (from.down == 1) transpose(rows);
        for (int i = 0; i < LANES && from.column_scale; ++i) rows[i] *= load_vec(from.column_scale + column);
        for (int i = 0; i < LANES && from.depth_scale; ++i) rows[i] *= from.depth_scale[k + i];
        store_rows(rows, out + start * packed.depth + k * width + (column - start) * Multiply<T>::STEP, width);
      }
  }
}

// An activation's value and derivative; GELU's is cdf(x) + x * pdf(x), with pdf(x) = exp(-x^2 / 2) / sqrt(2 pi).
template <Act act, class T>
void differentiate(vec x, vec& value, vec& slope) {
  if constexpr (act == Act::gelu) {
    const vec low = clamp_below<T>(x), cdf = normal_cdf<T>(low);
    value = low * cdf;
    slope = cdf + x * 0.39894228f * exp_vec(x * x * -0.5f);
  } else {
    value = activate<act, T>(x);
    const vec one = x > 0 ? vec{} + 1.0f : vec{};
    slope = act == Act::relu ? one : 2.0f * one * x;
  }
}

// Rows as the outer products read them: floats as they are, bfloat16 in pairs of rows side by side, the last beside zeros
// and, where tiles are used, up to whole tiles of zeros, for which a block has room. Element (r, c) lies at
// (r / STEP * stride + c) * STEP + r % STEP.
inline const float* paired(float* rows, long, long, long, float*) { return rows; }

inline const bfloat16* paired(bfloat16* rows, long stride, long count, long columns, bfloat16* memory) {
  const long whole = round_up(count, uses_tiles<bfloat16>() ? TILE_DEPTH : 2);
  for (long r = count; r < whole; ++r) std::fill_n(rows + r * stride, columns, bfloat16(0));
  for (long r = 0; r < whole; r += 2)
    for (long c = 0; c < columns; c += LANES) {
      const uvec pairs = interleave(rows + r * stride + c, rows + (r + 1) * stride + c);
      std::memcpy(memory + r * stride + 2 * c, &pairs, sizeof pairs);
    }
  return memory;
}

// out[i][j] (+)= sum over r of a[r][i] * b[r][j], for `count` <= ROWS of i by COUNT vectors j, of paired rows.
template <int COUNT, class T>
[[gnu::noinline]] void outer_tile(const T* a, long a_stride, const T* b, long b_stride, long rows, float* out,
                                  long columns, int count, bool add) {
  using M = Multiply<T>;
  vec sum[ROWS][COUNT] = {};
  if (add)
    for (int i = 0; i < count; ++i)
      for (int v = 0; v < COUNT; ++v) __builtin_prefetch(out + i * columns + v * LANES, 1);
  for (long r = 0; r < rows; r += M::STEP) {
    decltype(M::weights(b)) part[COUNT];
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) part[v] = M::weights(b + r * b_stride + v * LANES * M::STEP);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {  // beyond `count` it reads the row's padding, and the sums are not stored
      const auto one = M::broadcast(a + r * a_stride + i * M::STEP);
#pragma GCC unroll 8
      for (int v = 0; v < COUNT; ++v) sum[i][v] = M::add(sum[i][v], one, part[v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    if (i >= count) break;
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) {
      float* p = out + i * columns + v * LANES;
      store_vec(p, add ? sum[i][v] + load_vec(p) : sum[i][v]);
    }
  }
}

#if HAS_TILES
// Paired rows (rows, columns) transposed: (columns, rows), `length` apart. Pairs are moved as if they were floats.
inline void transpose_pairs(const bfloat16* pairs, long stride, long rows, long columns, bfloat16* out, long length) {
  for (long c = 0; c < columns; c += LANES)
    for (long r = 0; r < rows; r += TILE_DEPTH) {
      vec block[LANES];
      for (int i = 0; i < LANES; ++i) std::memcpy(&block[i], pairs + (r + 2 * i) * stride + 2 * c, sizeof block[i]);
      transpose(block);
      for (int i = 0; i < LANES; ++i) std::memcpy(out + (c + i) * length + r, &block[i], sizeof block[i]);
    }
}

// out[i][j] (+)= sum over r of a[i][r] * b[r][j], for DOWN tiles of i by ACROSS of j, of transposed `a` and paired b;
// tiles are used as in `tile_microkernel`.
template <int DOWN, int ACROSS>
void outer_tiles(const bfloat16* a, long length, const bfloat16* b, long b_stride, long rows, float* out, long columns,
                 bool add) {
  static constexpr float zeros[LANES] = {};
  constexpr auto across = std::make_integer_sequence<int, ACROSS>{};
  const long a_bytes = length * long(sizeof(bfloat16)), b_bytes = 2 * b_stride * long(sizeof(bfloat16)),
             out_bytes = columns * long(sizeof(float));
  unroll(across, [&](auto n) {
    const float *start = out + n * LANES, *below = start + TILE_ROWS * columns;
    tiles::load<n>(add ? start : zeros, add ? out_bytes : 0);
    if constexpr (DOWN == 2) tiles::load<ACROSS + n>(add ? below : zeros, add ? out_bytes : 0);
  });
  for (long r = 0; r < rows; r += TILE_DEPTH) {
    tiles::load<4>(a + r, a_bytes);
    if constexpr (DOWN == 2) tiles::load<5>(a + TILE_ROWS * length + r, a_bytes);
    unroll(across, [&](auto n) {
      tiles::load<6 + n>(b + r * b_stride + 2 * n * LANES, b_bytes);
      tiles::multiply<n, 4, 6 + n>();
      if constexpr (DOWN == 2) tiles::multiply<ACROSS + n, 5, 6 + n>();
    });
  }
  unroll(across, [&](auto n) {
    tiles::store<n>(out + n * LANES, out_bytes);
    if constexpr (DOWN == 2) tiles::store<ACROSS + n>(out + TILE_ROWS * columns + n * LANES, out_bytes);
  });
}

// The same for all i and j, both of them whole vectors.
inline void outer_in_tiles(const bfloat16* a, long length, long count, const bfloat16* b, long b_stride, long width,
                           long rows, float* out, long columns, bool add) {
  for (long j = 0; j < width;) {
    const bool wide = j + 2 * LANES <= width;
    for (long i = 0; i < count;) {
      const bool tall = i + 2 * TILE_ROWS <= count;
      const auto kernel = tall ? (wide ? outer_tiles<2, 2> : outer_tiles<2, 1>)
                               : (wide ? outer_tiles<1, 2> : outer_tiles<1, 1>);
      kernel(a + i * length, length, b + 2 * j, b_stride, rows, out + i * columns + j, columns, add);
      i += tall ? 2 * TILE_ROWS : TILE_ROWS;
    }
    j += wide ? 2 * LANES : LANES;
  }
}
#endif

// out (count, width), rows `columns` apart, = a' b of paired a (rows, count) and b (rows, width); added to it with `add`.
// Where tiles are used `a` is transposed in `memory`, of as much room as a's block.
template <class T>
void outer(const T* a, long a_stride, long count, const T* b, long b_stride, long width, long rows, float* out,
           long columns, bool add, [[maybe_unused]] T* memory) {
  constexpr long STEP = Multiply<T>::STEP;
#if HAS_TILES
  if constexpr (std::is_same_v<T, bfloat16>)
    if (uses_tiles<T>()) {
      const long length = round_up(rows, TILE_DEPTH);
      transpose_pairs(a, a_stride, length, count, memory, length);
      return outer_in_tiles(memory, length, count, b, b_stride, width, length, out, columns, add);
    }
#endif
  for (long j = 0; j < width;) {
    const bool wide = j + PANEL <= width;
    for (long i = 0; i < count; i += ROWS) {
      const int rest = int(std::min<long>(ROWS, count - i));
      (wide ? outer_tile<PANEL_VECS, T> : outer_tile<1, T>)(a + i * STEP, a_stride, b + j * STEP, b_stride, rows,
                                                            out + i * columns + j, columns, rest, add);
    }
    j += wide ? PANEL : LANES;
  }
}

// out (columns,) = the sums of a block's columns; added to it with `add`.
template <class T>
void sum_columns(const T* block, long stride, long columns, long rows, float* out, bool add) {
  for (long c = 0; c < columns; c += LANES) {
    vec sum = add ? load_vec(out + c) : vec{};
    for (long r = 0; r < rows; ++r) sum += load_vec(block + r * stride + c);
    store_vec(out + c, sum);
  }
}

template <class T>
struct Mlp {
  Input<T> x;                      // (rows, dim)
  const float *w1, *w2;            // (hidden, dim), (dim, hidden)
  const float *b1, *output_scale;  // (hidden,), (dim,), or null; the latter is w2's
  const T* pre_act;                // (rows, hidden), or null
  long dim, hidden;
};

struct Gradients {
  float *x, *w1, *b1, *w2, *b2, *output_scale;
};

// Hidden channels [first, last), with the three weights that they need, packed side by side.
template <class T>
struct HiddenSlice {
  long first, width;
  std::unique_ptr<T[]> memory;
  PackedWeight<T> expand, back, contract;  // x W1' is hidden, grad_out W2 is grad_hidden, that times W1 is grad_x

  HiddenSlice(const Mlp<T>& m, long first_, long last, const float* zeros)
      : first(first_), width(last - first_), memory(new T[3 * m.dim * width]),
        expand{memory.get(), m.b1 ? m.b1 + first : zeros, m.dim, width},
        back{memory.get() + m.dim * width, zeros, m.dim, width},
        contract{memory.get() + 2 * m.dim * width, zeros, width, m.dim} {
    const auto fill = [&](const Source& from, const PackedWeight<T>& to, long part) {
      pack(from, Range(to.panels(), 0, 1), to, memory.get() + part * m.dim * width);
    };
    if (!m.pre_act) fill({m.w1 + first * m.dim, m.dim, 1, nullptr, nullptr}, expand, 0);
    fill({m.w2 + first, 1, m.hidden, nullptr, m.output_scale}, back, 1);
    fill({m.w1 + first * m.dim, 1, m.dim, nullptr, nullptr}, contract, 2);
  }
};

// Rows [first, last) through one slice of the hidden channels:
//   grad_hidden = grad_out W2 * act'(pre_act)    grad_x = grad_hidden W1      (writes it: this slice's part of the sum)
//   grad_w1 = grad_hidden' x                     grad_w2 = grad_out' hidden   (the slice's rows, the slice's columns)
// and the first slice sums up grad_b1 and grad_b2.
template <Act act, class T>
void backward(const T* grad_out, const Mlp<T>& m, const HiddenSlice<T>& slice, long first, long last,
              const Gradients& grads) {
  constexpr long COPIES = std::is_same_v<T, bfloat16> ? 2 : 1;  // the rows, and of bfloat16 pairs of rows
  const long narrow = padded(m.dim), wide = padded(slice.width), row = 2 * (narrow + wide);
  const long group = uses_tiles<T>() ? TILE_DEPTH : ROWS;  // outer products go along rows in whole tiles
  const long most = block_rows<T>(BACKWARD_CACHE, COPIES * row * long(sizeof(T)), group);
  T* xs = reinterpret_cast<T*>(scratch(COPIES * most * row * sizeof(T)));
  T* grad_outs = xs + most * narrow;          // as xs (most, narrow)
  T* hidden = grad_outs + most * narrow;      // (most, wide)
  T* grad_hidden = hidden + most * wide;      // (most, wide)
  T* pairs = grad_hidden + most * wide;       // the same four again
  for (long from = first; from < last; from += most) {
    const long rows = std::min(most, last - from);
    m.x.copy(from, from + rows, xs);
    for (long r = 0; r < rows; ++r) std::copy_n(grad_out + (from + r) * m.dim, m.dim, grad_outs + r * narrow);
    const Range all(slice.expand.panels(), 0, 1);
    if (m.pre_act)
      for (long r = 0; r < rows; ++r)
        std::copy_n(m.pre_act + (from + r) * m.hidden + slice.first, slice.width, hidden + r * wide);
    else
      matmul(xs, rows, narrow, slice.expand, all,
             [&](long r, long c, vec sum) { store_vec(hidden + r * wide + c, sum); });
    matmul(grad_outs, rows, narrow, slice.back, all, [&](long r, long c, vec sum) {
      vec value, slope;
      differentiate<act, T>(load_vec(hidden + r * wide + c), value, slope);
      store_vec(hidden + r * wide + c, value);
      store_vec(grad_hidden + r * wide + c, sum * slope);
    });
    matmul(grad_hidden, rows, wide, slice.contract, Range(slice.contract.panels(), 0, 1), [&](long r, long c, vec sum) {
      if (r < rows) store_vec(grads.x + (from + r) * m.dim + c, sum);
    });
    const bool add = from > first;
    const auto pair = [&](T* block, long stride, long columns) {
      return paired(block, stride, rows, columns, pairs + (block - xs));
    };
    const T *x_pairs = pair(xs, narrow, m.dim), *grad_out_pairs = pair(grad_outs, narrow, m.dim);
    const T *hidden_pairs = pair(hidden, wide, slice.width), *grad_pairs = pair(grad_hidden, wide, slice.width);
    sum_columns(grad_hidden, wide, slice.width, rows, grads.b1 + slice.first, add);
    if (slice.first == 0) sum_columns(grad_outs, narrow, m.dim, rows, grads.b2, add);
    outer(grad_pairs, wide, slice.width, x_pairs, narrow, m.dim, rows, grads.w1 + slice.first * m.dim, m.dim, add,
          grad_hidden);  // the rows themselves are no longer needed
    outer(grad_out_pairs, narrow, m.dim, hidden_pairs, wide, slice.width, rows, grads.w2 + slice.first, m.hidden, add,
          grad_outs);
  }
}

// a += b, by all threads.
void add(float* a, const float* b, long count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (long i = 0; i < count; ++i) a[i] += b[i];
}

// From the gradient of scale * w2 those of w2 and the scale, but for the part that a bias has in the latter.
template <class T>
void unscale(const Mlp<T>& m, const Gradients& grads, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long c = 0; c < m.dim; ++c) {
    vec sum = {};
    for (long i = c * m.hidden; i < (c + 1) * m.hidden; i += LANES) {
      const vec grad = load_vec(grads.w2 + i);
      sum += grad * load_vec(m.w2 + i);
      store_vec(grads.w2 + i, grad * m.output_scale[c]);
    }
    grads.output_scale[c] = sum_lanes(sum);
  }
}

// Threads share the rows in `pairs`; the two of a pair, where there are two, share the hidden channels. So each thread
// has its own rows of the weights' gradients in its pair's memory, and of grad_x, which sums over hidden channels, the
// second of a pair has memory of its own. What is added to what depends on `threads` alone: the bits repeat.
template <Act act, class T>
void backward_all(const T* grad_out, const Mlp<T>& m, const Gradients& grads, int threads) {
  const int sides = threads % 2 == 0 && m.hidden >= 2 * PANEL ? 2 : 1, pairs = threads / sides;
  const long weights = m.dim * m.hidden, rows = m.x.count, elements = rows * m.dim, half = m.hidden / PANEL / 2 * PANEL;
  const long parameters = 2 * weights + m.hidden + m.dim;
  const std::vector<float> zeros(std::max(m.dim, m.hidden), 0.0f);
  std::vector<std::unique_ptr<HiddenSlice<T>>> slices(sides);
  std::unique_ptr<float[]> other_x(sides > 1 ? new float[elements] : nullptr);
  std::unique_ptr<float[]> sums(pairs > 1 ? new float[(pairs - 1) * parameters] : nullptr);
#pragma omp parallel for num_threads(sides) schedule(static)
  for (int side = 0; side < sides; ++side) {
    const long middle = sides > 1 ? half : m.hidden;
    slices[side].reset(new HiddenSlice<T>(m, side ? middle : 0, side ? m.hidden : middle, zeros.data()));
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1)  // there may be fewer threads than were asked for
  for (int share = 0; share < threads; ++share) {
    const Ready<T> ready;
    const int side = share % sides, pair = share / sides;
    Gradients own = grads;
    if (side > 0) own.x = other_x.get();
    if (pair > 0) {  // of each further pair: w1 (weights), w2 (weights), b1 (hidden), b2 (dim)
      own.w1 = sums.get() + (pair - 1) * parameters;
      own.w2 = own.w1 + weights;
      own.b1 = own.w2 + weights;
      own.b2 = own.b1 + m.hidden;
    }
    const Range range(rows, pair, pairs);
    if (range.first == range.last) {  // fewer rows than pairs: nothing else writes these sums
      const HiddenSlice<T>& slice = *slices[side];
      for (long i = 0; i < slice.width; ++i) own.b1[slice.first + i] = 0;
      for (long i = 0; i < slice.width * m.dim; ++i) own.w1[slice.first * m.dim + i] = 0;
      for (long c = 0; c < m.dim; ++c) std::fill_n(own.w2 + c * m.hidden + slice.first, slice.width, 0.0f);
      if (side == 0) std::fill_n(own.b2, m.dim, 0.0f);
    }
    backward<act, T>(grad_out, m, *slices[side], range.first, range.last, own);
  }
  if (sides > 1) add(grads.x, other_x.get(), elements, threads);
  for (int pair = 1; pair < pairs; ++pair) {
    const float* sum = sums.get() + (pair - 1) * parameters;
    add(grads.w1, sum, weights, threads);
    add(grads.w2, sum + weights, weights, threads);
    add(grads.b1, sum + 2 * weights, m.hidden, threads);
    add(grads.b2, sum + 2 * weights + m.hidden, m.dim, threads);
  }
  if (m.output_scale) unscale(m, grads, threads);
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void linear_##suffix(const T* x, const T* weight, const float* bias, const T* residual, \
                                  const float* residual_scale, T* out, long rows, long in_features, \
                                  long out_features, int norm, int act, float eps, int threads) { \
    const Input<T> input{x, rows, in_features, Norm(norm), eps, nullptr, 1}; \
    const PackedWeight<T> packed{weight, bias, in_features, whole_columns(out_features)}; \
    const Output<T> output{residual, residual_scale, out, out_features}; \
    dispatch(Act(act), [&](auto act_) { linear<act_>(input, packed, output, threads); }); \
  } \
  extern "C" void mlp_##suffix(const T* x, const float* moments, const float* gamma, const float* beta, const T* w1, \
                               const float* b1, const T* w2, const float* b2, const T* residual, \
                               const float* residual_scale, T* out, T* pre_act, long samples, long positions, \
                               long dim, long hidden, int norm, int act, float eps, int threads) { \
    const Input<T> input{x, samples * positions, dim, Norm(norm), eps, moments, positions, gamma, beta}; \
    const PackedWeight<T> first{w1, b1, dim, hidden}, second{w2, b2, hidden, dim}; \
    const Output<T> output{residual, residual_scale, out, dim}; \
    dispatch(Act(act), [&](auto act_) { mlp<act_>(input, first, second, output, pre_act, threads); }); \
  } \
  extern "C" void pack_linear_##suffix(T* packed, const float* weight, const float* scale, long out_features, \
                                       long in_features, int threads) { \
    const PackedWeight<T> to{nullptr, nullptr, in_features, out_features}; \
    const long panels = to.panels(); \
    _Pragma("omp parallel for num_threads(threads) schedule(static)") for (long p = 0; p < panels; ++p) \
        pack({weight, in_features, 1, scale, nullptr}, Range(panels, int(p), int(panels)), to, packed); \
  } \
  extern "C" void mlp_backward_##suffix(const T* x, const T* grad_out, const float* moments, const float* gamma, \
                                        const float* beta, const float* w1, const float* b1, const float* w2, \
                                        const float* output_scale, const T* pre_act, float* grad_x, float* grad_w1, \
                                        float* grad_b1, float* grad_w2, float* grad_b2, float* grad_scale, \
                                        long samples, long positions, long dim, long hidden, int norm, int act, \
                                        int threads) { \
    const Input<T> input{x, samples * positions, dim, Norm(norm), 0, moments, positions, gamma, beta}; \
    dispatch(Act(act), [&](auto act_) { \
      backward_all<act_, T>(grad_out, {input, w1, w2, b1, output_scale, pre_act, dim, hidden}, \
                            {grad_x, grad_w1, grad_b1, grad_w2, grad_b2, grad_scale}, threads); \
    }); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)

// Dtypes for whose products the instructions are used: 1 for float, 2 for bfloat16.
extern "C" int linear_dtypes() {
#if defined(__AVX512BF16__)
  return 3;
#elif defined(__AVX2__) && defined(__FMA__)
  return 1;
#else
  return 0;
#endif
}

extern "C" int simd_lanes() { return LANES; }
extern "C" int panel_columns() { return PANEL; }

// The instructions that products run on.
extern "C" const char* instructions() {
  if (uses_tiles<bfloat16>()) return "AVX-512, bfloat16 by AMX tiles";
#if defined(__AVX512BF16__)
  return "AVX-512 with bfloat16";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#else
  return "no AVX2";
#endif
}
