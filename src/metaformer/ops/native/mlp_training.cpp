// What a channel MLP act(n W1' + b1) W2' needs in training beside its forward pass: packed weights, and the backward
// pass, which makes the hidden map again where it was not kept. Float alone.
#include <memory>

#include "product.h"

namespace {

constexpr long CACHE = 600 << 10;  // bytes of rows at a time

// Packs a weight whose element (column, k) lies at column * across + k * down, one of which is 1.
void pack(const float* weight, long across, long down, const Layer<float>& layer, float* out) {
  for (long p = 0; p < layer.panels(); ++p) {
    const long whole = layer.columns / PANEL;
    const long width = p < whole ? PANEL : LANES, column = p < whole ? p * PANEL : whole * PANEL + (p - whole) * LANES;
    float* panel = out + column * layer.depth;
    const float* from = weight + column * across;
    if (across == 1) {
      for (long k = 0; k < layer.depth; ++k) std::copy_n(from + k * down, width, panel + k * width);
      continue;
    }
    for (long k = 0; k < layer.depth; k += LANES)
      for (long c = 0; c < width; c += LANES) {
        lanes square[LANES];
        for (int i = 0; i < LANES; ++i) square[i] = read(from + (c + i) * across + k);
        transpose(square);
        for (int i = 0; i < LANES; ++i) write(panel + (k + i) * width + c, square[i]);
      }
  }
}

// An activation's value and derivative.
template <Act act>
void differentiate(lanes x, lanes& value, lanes& slope) {
  if constexpr (act == Act::gelu) {
    const lanes low = not_far_below<float>(x), share = gelu_share<float>(low);
    value = low * share;
    slope = share + x * 0.39894228f * exponential(x * x * -0.5f);
  } else {
    value = activated<act, float>(x);
    const lanes one = x > 0 ? lanes{} + 1.0f : lanes{};
    slope = act == Act::relu ? one : 2.0f * one * x;
  }
}

// Sums over rows of a[row][i] * b[row][j], six i by COUNT vectors of j; `rest` of the i are there.
template <int COUNT>
[[gnu::noinline]] void outer_tile(const float* a, long a_stride, const float* b, long b_stride, long rows, float* out,
                                  long columns, int rest, bool add) {
  lanes sum[ROWS][COUNT] = {};
  if (add)
    for (int i = 0; i < rest; ++i)
      for (int v = 0; v < COUNT; ++v) __builtin_prefetch(out + i * columns + v * LANES, 1);
  for (long r = 0; r < rows; ++r) {
    lanes part[COUNT];
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) part[v] = read(b + r * b_stride + v * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const lanes one = lanes{} + a[r * a_stride + i];
#pragma GCC unroll 8
      for (int v = 0; v < COUNT; ++v) sum[i][v] += one * part[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    if (i >= rest) break;
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) {
      float* place = out + i * columns + v * LANES;
      write(place, add ? sum[i][v] + read(place) : sum[i][v]);
    }
  }
}

// out (count, columns) += a' b of (rows, count) and (rows, width), or = where there is nothing yet.
void outer(const float* a, long a_stride, long count, const float* b, long b_stride, long width, long rows, float* out,
           long columns, bool add) {
  for (long j = 0; j < width;) {
    const bool wide = j + PANEL <= width;
    for (long i = 0; i < count; i += ROWS) {
      const int rest = int(std::min<long>(ROWS, count - i));
      (wide ? outer_tile<PANEL_LANES> : outer_tile<1>)(a + i, a_stride, b + j, b_stride, rows, out + i * columns + j,
                                                       columns, rest, add);
    }
    j += wide ? PANEL : LANES;
  }
}

struct Weights {
  const float *w1, *b1, *w2, *before;  // the hidden map before its activation, if it was kept
  long dim, hidden;
};

struct Gradients {
  float *of_n, *of_w1, *of_b1, *of_w2;
};

// Some of the hidden channels, from `first` to `last`, whose packed weights lie together.
struct Share {
  long first, width;
  std::unique_ptr<float[]> room;
  Layer<float> expand, back, contract;  // n to the hidden map, the gradient to it, and from its gradient to n's

  Share(const Weights& w, long first_, long last, const float* zeros)
      : first(first_), width(last - first_), room(new float[3 * w.dim * width]),
        expand{room.get(), w.b1 ? w.b1 + first : zeros, w.dim, width},
        back{room.get() + w.dim * width, zeros, w.dim, width},
        contract{room.get() + 2 * w.dim * width, zeros, width, w.dim} {
    if (!w.before) pack(w.w1 + first * w.dim, w.dim, 1, expand, room.get());
    pack(w.w2 + first, 1, w.hidden, back, room.get() + w.dim * width);
    pack(w.w1 + first * w.dim, 1, w.dim, contract, room.get() + 2 * w.dim * width);
  }
};

// Rows from `first` to `last` by one share: sums into its rows of of_w1 and columns of of_w2, and writes of_n.
template <Act act>
void backward(const float* n, const float* given, const Weights& w, const Share& share, long first, long last,
              const Gradients& out) {
  const long narrow = padded(w.dim), wide = padded(share.width);
  const long most = std::max(1L, CACHE / long(sizeof(float) * 2 * (narrow + wide)) / ROWS) * ROWS;
  float* ns = reinterpret_cast<float*>(scratch(2 * most * (narrow + wide) * sizeof(float)));
  float *gs = ns + most * narrow, *hidden = gs + most * narrow, *of_hidden = hidden + most * wide;
  for (long from = first; from < last; from += most) {
    const long rows = std::min(most, last - from);
    for (long r = 0; r < rows; ++r) {
      std::copy_n(n + (from + r) * w.dim, w.dim, ns + r * narrow);
      std::copy_n(given + (from + r) * w.dim, w.dim, gs + r * narrow);
    }
    const Part all(share.expand.panels(), 0, 1);
    if (w.before)
      for (long r = 0; r < rows; ++r)
        std::copy_n(w.before + (from + r) * w.hidden + share.first, share.width, hidden + r * wide);
    else
      multiply(ns, rows, narrow, share.expand, all,
               [&](long r, long c, lanes sum) { write(hidden + r * wide + c, sum); });
    multiply(gs, rows, narrow, share.back, all, [&](long r, long c, lanes sum) {
      lanes value, slope;
      differentiate<act>(read(hidden + r * wide + c), value, slope);
      write(hidden + r * wide + c, value);
      write(of_hidden + r * wide + c, sum * slope);
    });
    multiply(of_hidden, rows, wide, share.contract, Part(share.contract.panels(), 0, 1), [&](long r, long c, lanes sum) {
      if (r < rows) write(out.of_n + (from + r) * w.dim + c, sum);
    });
    const bool add = from > first;
    outer(of_hidden, wide, share.width, ns, narrow, w.dim, rows, out.of_w1 + share.first * w.dim, w.dim, add);
    outer(gs, narrow, w.dim, hidden, wide, share.width, rows, out.of_w2 + share.first, w.hidden, add);
    for (long c = 0; c < share.width; c += LANES) {
      float* place = out.of_b1 + share.first + c;
      lanes sum = add ? read(place) : lanes{};
      for (long r = 0; r < rows; ++r) sum += read(of_hidden + r * wide + c);
      write(place, sum);
    }
  }
}

// a += b, by all threads.
void add(float* a, const float* b, long count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (long i = 0; i < count; ++i) a[i] += b[i];
}

// Threads share the hidden channels, two by two where they can: each has its rows of the weights' gradients, and only
// what they make of of_n is added up. Pairs share rows.
template <Act act>
void run(const float* n, const float* given, const Weights& w, const Gradients& out, long rows, int threads) {
  const int sides = threads % 2 == 0 && w.hidden >= 2 * PANEL ? 2 : 1, pairs = threads / sides;
  const long weights = w.dim * w.hidden, map = rows * w.dim, half = w.hidden / PANEL / 2 * PANEL;
  const std::vector<float> zeros(std::max(w.dim, w.hidden), 0.0f);
  std::vector<std::unique_ptr<Share>> shares(sides);
  std::unique_ptr<float[]> other(sides > 1 ? new float[map] : nullptr);
  std::unique_ptr<float[]> sums(pairs > 1 ? new float[(pairs - 1) * (2 * weights + w.hidden)] : nullptr);
#pragma omp parallel for num_threads(sides) schedule(static)
  for (int side = 0; side < sides; ++side) {
    const long middle = sides > 1 ? half : w.hidden;
    shares[side].reset(new Share(w, side ? middle : 0, side ? w.hidden : middle, zeros.data()));
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1)  // there may be fewer threads than were asked for
  for (int part_of = 0; part_of < threads; ++part_of) {
    const int side = part_of % sides, pair = part_of / sides;
    Gradients mine = out;
    if (side > 0) mine.of_n = other.get();
    if (pair > 0) {
      mine.of_w1 = sums.get() + (pair - 1) * (2 * weights + w.hidden);
      mine.of_w2 = mine.of_w1 + weights;
      mine.of_b1 = mine.of_w2 + weights;
    }
    const Part part(rows, pair, pairs);
    if (part.first == part.last) {  // fewer rows than pairs
      const Share& share = *shares[side];
      for (long i = 0; i < share.width; ++i) mine.of_b1[share.first + i] = 0;
      for (long i = 0; i < share.width * w.dim; ++i) mine.of_w1[share.first * w.dim + i] = 0;
      for (long c = 0; c < w.dim; ++c) std::fill_n(mine.of_w2 + c * w.hidden + share.first, share.width, 0.0f);
    }
    backward<act>(n, given, w, *shares[side], part.first, part.last, mine);
  }
  if (sides > 1) add(out.of_n, other.get(), map, threads);
  for (int pair = 1; pair < pairs; ++pair) {
    const float* of = sums.get() + (pair - 1) * (2 * weights + w.hidden);
    add(out.of_w1, of, weights, threads);
    add(out.of_w2, of + weights, weights, threads);
    add(out.of_b1, of + 2 * weights, w.hidden, threads);
  }
}

}  // namespace

extern "C" void mlp_pack_float32(const float* weight, float* out, long columns, long depth, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long p = 0; p < columns / PANEL; ++p)
    pack(weight + p * PANEL * depth, depth, 1, {nullptr, nullptr, depth, PANEL}, out + p * PANEL * depth);
  const long rest = columns / PANEL * PANEL;
  pack(weight + rest * depth, depth, 1, {nullptr, nullptr, depth, columns - rest}, out + rest * depth);
}

extern "C" void mlp_backward_float32(const float* n, const float* given, const float* w1, const float* b1,
                                     const float* w2, const float* before, float* of_n, float* of_w1, float* of_b1,
                                     float* of_w2, long rows, long dim, long hidden, int act, int threads) {
  with(Act(act), [&](auto act_) {
    run<act_>(n, given, {w1, b1, w2, before, dim, hidden}, {of_n, of_w1, of_b1, of_w2}, rows, threads);
  });
}
