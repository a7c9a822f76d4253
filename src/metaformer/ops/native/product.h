// Products of rows with a weight, as registers and caches want them: ROWS rows by COUNT vectors of columns are summed
// in registers, over a panel of the weight that lies as it is read.
//
// A weight (columns, depth) is packed as panels of PANEL columns, what is left over as panels of LANES: each
// (depth / STEP, its columns, STEP). bfloat16 is multiplied two by two, float one by one.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "lanes.h"

constexpr int ROWS = 6;  // with PANEL_LANES vectors of columns they leave some of 32 or 16 registers
constexpr int PANEL_LANES = WIDE ? 4 : 2;
constexpr long PANEL = PANEL_LANES * LANES;

template <class T>
struct Multiply;

template <>
struct Multiply<float> {
  static constexpr long STEP = 1;
  static lanes fetch(const float* place) { return read(place); }
  static lanes one(const float* place) { return lanes{} + *place; }
  static lanes add(lanes sum, lanes a, lanes b) { return sum + a * b; }
};

template <>
struct Multiply<bfloat16> {
  static constexpr long STEP = 2;
  static integers fetch(const bfloat16* place) {
    integers value;
    std::memcpy(&value, place, sizeof value);
    return value;
  }
  static integers one(const bfloat16* place) {
    uint32_t two;
    std::memcpy(&two, place, sizeof two);
    return integers{} + two;
  }
  static lanes add(lanes sum, integers a, integers b) {
#if defined(__AVX512BF16__)
    return same_bits<lanes>(
        _mm512_dpbf16_ps(same_bits<__m512>(sum), same_bits<__m512bh>(a), same_bits<__m512bh>(b)));
#else
    constexpr uint32_t UPPER = 0xffff0000u;
    sum += same_bits<lanes>(a << 16) * same_bits<lanes>(b << 16);
    return sum + same_bits<lanes>(a & UPPER) * same_bits<lanes>(b & UPPER);
#endif
  }
};

// Sums of ROWS rows, `stride` apart, by COUNT vectors of columns. It stands alone, and the sums go through the first
// cache: beside what is done with them the compiler finds no registers for all of them.
template <int COUNT, class T>
[[gnu::noinline]] void tile(const T* rows, long stride, const T* panel, long depth, const float* bias, float* out) {
  using M = Multiply<T>;
  lanes sum[ROWS][COUNT];
#pragma GCC unroll 8
  for (int v = 0; v < COUNT; ++v) {
    const lanes start = read(bias + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r][v] = start;
  }
  for (long k = 0; k < depth; k += M::STEP) {
    decltype(M::fetch(panel)) weight[COUNT];
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) weight[v] = M::fetch(panel + (k * COUNT + v * M::STEP) * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const auto row = M::one(rows + r * stride + k);
#pragma GCC unroll 8
      for (int v = 0; v < COUNT; ++v) sum[r][v] = M::add(sum[r][v], row, weight[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) write(out + (r * COUNT + v) * LANES, sum[r][v]);
}

// A packed weight (columns, depth) with its bias.
template <class T>
struct Layer {
  const T* weight;
  const float* bias;
  long depth, columns;
  long panels() const { return columns / PANEL + columns % PANEL / LANES; }
};

// A thread's part of `count` things.
struct Part {
  long first, last;
  Part(long count, int thread, int threads) : first(count * thread / threads), last(count * (thread + 1) / threads) {}
};

// store(row, column, lanes) of the rows of a block, up to the next ROWS, in some of a layer's panels.
template <class T, class Store>
void multiply(const T* block, long rows, long stride, const Layer<T>& layer, Part panels, const Store& store) {
  const long whole = layer.columns / PANEL;
  for (long p = panels.first; p < panels.last; ++p) {
    const bool narrow = p >= whole;
    const long column = narrow ? whole * PANEL + (p - whole) * LANES : p * PANEL, width = narrow ? LANES : PANEL;
    const T* panel = layer.weight + column * layer.depth;
    for (long r = 0; r < rows; r += ROWS) {
      alignas(64) float sums[ROWS * PANEL];
      auto* one = narrow ? tile<1, T> : tile<PANEL_LANES, T>;
      one(block + r * stride, stride, panel, layer.depth, layer.bias + column, sums);
      for (int i = 0; i < ROWS; ++i)
        for (long c = 0; c < width; c += LANES) store(r + i, column + c, read(sums + i * width + c));
    }
  }
}

// From row to row of a block: at 4096 bytes all would share one place of a cache.
inline long padded(long depth) { return depth + 2 * LANES; }

// Rows of a map as they are multiplied: normalised over each row's channels, over its sample, or not at all.
enum class Norm : int { none = 0, token = 1, sample = 2 };

template <class T>
struct Rows {
  const T* x;
  long count, depth;
  Norm norm;
  float eps;             // of a token's norm
  const float* moments;  // (samples, 2), mean and factor of each sample of `positions` rows
  long positions;

  long stride() const { return padded(depth); }

  void fetch(long first, long last, T* out) const {
    for (long r = first; r < last; ++r, out += stride()) {
      const T* row = x + r * depth;
      float mean = 0, factor = 1;
      if (norm == Norm::sample) {
        mean = moments[2 * (r / positions)];
        factor = moments[2 * (r / positions) + 1];
      } else if (norm == Norm::token) {
        lanes sum = {}, squares = {};
        for (long c = 0; c < depth; c += LANES) sum += read(row + c);
        mean = total(sum) / float(depth);
        for (long c = 0; c < depth; c += LANES) {
          const lanes distance = read(row + c) - mean;
          squares += distance * distance;
        }
        factor = 1 / std::sqrt(total(squares) / float(depth) + eps);
      } else {
        std::memcpy(out, row, depth * sizeof(T));
        continue;
      }
      for (long c = 0; c < depth; c += LANES) write(out + c, (read(row + c) - mean) * factor);
    }
  }
};

// What a finished sum becomes: act(sum + bias) + keep * past.
enum class Act : int { none = 0, relu = 1, squared_relu = 2, gelu = 3 };

// The share of a normal distribution below x is one half and x times a polynomial of x^2 by minimax, of x no farther
// than FAR, where it is 0 or 1 to the type's last place. Times x it errs by 1e-6 for float, 2.5e-5 for bfloat16.
template <class T>
struct Normal;

template <>
struct Normal<float> {
  static constexpr float FAR = 5.2f;
  static constexpr float TERMS[] = {8.5876719e-4f,   -2.50371196e-3f, 2.85360753e-3f, -3.50572797e-3f, 7.55783636e-3f,
                                    -1.31033314e-2f, 1.83871612e-2f,  -2.45934110e-2f, 3.19072641e-2f, -3.99412997e-2f,
                                    5.00301681e-2f,  -6.77434057e-2f, 1.35949939e-1f};
};

template <>
struct Normal<bfloat16> {
  static constexpr float FAR = 4.4f;
  static constexpr float TERMS[] = {2.75413366e-3f, -7.88414571e-3f, 1.09878862e-2f, -1.59770362e-2f, 2.68021717e-2f,
                                    -4.00892161e-2f, 5.52505255e-2f, -7.86123127e-2f, 1.60404414e-1f};
};

template <class T>
lanes not_far_below(lanes x) {
  return larger(lanes{} - Normal<T>::FAR, x);
}

template <class T>
lanes gelu_share(lanes low) {
  constexpr float FAR = Normal<T>::FAR;
  const lanes near = smaller(lanes{} + FAR, low);
  const lanes u = near * near * (2 / (FAR * FAR)) - 1.0f;
  lanes y = {};
  for (float term : Normal<T>::TERMS) y = y * u + term;
  return y * near + 0.5f;
}

template <Act act, class T>
lanes activated(lanes x) {
  if constexpr (act == Act::gelu) {
    x = not_far_below<T>(x);  // where it is as good as nothing, times what may be much
    return x * gelu_share<T>(x);
  }
  if constexpr (act == Act::relu || act == Act::squared_relu) x = x < 0 ? lanes{} : x;
  if constexpr (act == Act::squared_relu) x = x * x;
  return x;
}

// Calls with the activation as a constant.
template <class Call>
void with(Act act, const Call& call) {
  switch (act) {
    case Act::none: return call(std::integral_constant<Act, Act::none>{});
    case Act::relu: return call(std::integral_constant<Act, Act::relu>{});
    case Act::squared_relu: return call(std::integral_constant<Act, Act::squared_relu>{});
    case Act::gelu: return call(std::integral_constant<Act, Act::gelu>{});
  }
}

// Where finished sums go: out = sum + keep * past, of a map with `columns`.
template <class T>
struct Joined {
  const T* past;      // or none
  const float* keep;  // or none, which is 1
  T* out;
  long columns;

  void operator()(long row, long column, lanes sum) const {
    const long at = row * columns + column;
    if (past) sum += keep ? read(keep + column) * read(past + at) : read(past + at);
    write(out + at, sum);
  }
};

// Memory that a thread keeps between calls.
inline char* scratch(long bytes) {
  static thread_local std::vector<char> kept;
  if (long(kept.size()) < bytes + 64) kept.resize(bytes + 64);
  return kept.data() + (64 - reinterpret_cast<uintptr_t>(kept.data()) % 64) % 64;
}

// How threads share rows. Where there are many each has its own; where there are few all work on the same ones, with
// some of the weight's columns each.
struct Team {
  bool together;
  int thread, threads;
  Part groups;  // of ROWS rows

  Team(long count, int thread_, int threads_)
      : together(count % threads_ && count < 8 * threads_),
        thread(together ? thread_ : 0),
        threads(together ? threads_ : 1),
        groups(count, together ? 0 : thread_, together ? 1 : threads_) {}

  Part part(long count) const { return Part(count, thread, threads); }

  void wait() const {
    if (together) {
#pragma omp barrier
    }
  }
};

// Calls work(team, block, from, rows) for some rows after the other, in `threads` threads. A block has room for `most`
// groups of rows, `bytes` each; the threads of a team are given the same one.
template <class Work>
void by_rows(long rows, long bytes, long most, int threads, const Work& work) {
  char* shared = nullptr;
  most = std::max(1L, most);
#pragma omp parallel num_threads(threads)
  {
    const Team team((rows + ROWS - 1) / ROWS, omp_get_thread_num(), omp_get_num_threads());
    char* block = scratch(bytes * most * ROWS);
    if (team.together) {
#pragma omp single
      shared = block;
      block = shared;
    }
    for (long group = team.groups.first; group < team.groups.last; group += most) {
      const long last = std::min({rows, team.groups.last * ROWS, (group + most) * ROWS});
      work(team, block, group * ROWS, last - group * ROWS);
      team.wait();
    }
  }
}
