// Matrix products of rows (rows, in) with packed weights, blocked for registers and caches.
//
//   out[r][c] = sum over k of rows[r][k] * weight[c][k] + bias[c]
//
// A microkernel holds ROWS x (COUNT * LANES) sums in registers, or with AMX 2 x 2 tiles of them, and goes along k once.
// A weight (out, in) is packed as panels of PANEL columns c, those left over as panels of LANES; a panel is (in / STEP,
// its columns, STEP), so that
//   element (c, k) of a panel of `width` columns lies at (k / STEP * width + c) * STEP + k % STEP
// where STEP is 2 for bfloat16, which is multiplied in pairs, and 1 for float.
#pragma once
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "simd.h"
#include "tiles.h"

constexpr int ROWS = 6;  // 6 x 4 of 32 registers, or 6 x 2 of 16, for sums; the rest for a row and the weight
constexpr int PANEL_VECS = WIDE ? 4 : 2;
constexpr long PANEL = PANEL_VECS * LANES;

template <class T>
struct Multiply;

template <>
struct Multiply<float> {
  static constexpr long STEP = 1;
  static vec weights(const float* p) { return load_vec(p); }
  static vec broadcast(const float* p) { return *p - vec{}; }  // a load; adding 0 would be work, as it changes -0
  static vec add(vec sum, vec a, vec b) { return sum + a * b; }
};

template <>
struct Multiply<bfloat16> {
  static constexpr long STEP = 2;
  static uvec weights(const bfloat16* p) {  // a lane holds two consecutive k of one column
    uvec value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  static uvec broadcast(const bfloat16* p) {
    uint32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return uvec{} + pair;
  }
  static vec add(vec sum, uvec a, uvec b) {
#if defined(__AVX512BF16__)
    return bit_cast<vec>(_mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
#else
    constexpr uint32_t UPPER = 0xffff0000u;
    sum += bit_cast<vec>(a << 16) * bit_cast<vec>(b << 16);           // even k: the lower halves
    return sum + bit_cast<vec>(a & UPPER) * bit_cast<vec>(b & UPPER);  // odd k
#endif
  }
};

// Memory that a product asks for ahead of time, some bytes with each k: the processor follows a weight by itself within
// a page alone, so that a weight of megabytes would be waited for at each of its pages.
struct Prefetch {
  const char* start;
  long per_k;
};

// sums (ROWS, COUNT * LANES) of rows that lie `stride` apart by a panel of COUNT vectors of columns. It is not inlined,
// and the sums go through the L1 cache: beside what is done with them the compiler finds too few registers.
template <int COUNT, class T>
[[gnu::noinline]] void microkernel(const T* rows, long stride, const T* panel, long depth, const float* bias,
                                   float* sums, Prefetch next) {
  using M = Multiply<T>;
  vec sum[ROWS][COUNT];
#pragma GCC unroll 8
  for (int v = 0; v < COUNT; ++v) {
    const vec start = load_vec(bias + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) sum[r][v] = start;
  }
  for (long k = 0; k < depth; k += M::STEP) {
    __builtin_prefetch(next.start + k * next.per_k, 0, 2);
    decltype(M::weights(panel)) weight[COUNT];
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) weight[v] = M::weights(panel + (k * COUNT + v * M::STEP) * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const auto row = M::broadcast(rows + r * stride + k);
#pragma GCC unroll 8
      for (int v = 0; v < COUNT; ++v) sum[r][v] = M::add(sum[r][v], row, weight[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) store_vec(sums + (r * COUNT + v) * LANES, sum[r][v]);
}

constexpr long TILE_ROWS = 16, TILE_DEPTH = 32;  // of bfloat16 that are multiplied at once

// Whether this process multiplies T in tiles.
template <class T>
bool uses_tiles() {
  return std::is_same_v<T, bfloat16> && tiles::allowed();
}

// Rows of a group: threads share whole groups, and a block is some of them.
template <class T>
long group_rows() {
  return uses_tiles<T>() ? TILE_ROWS : ROWS;
}

#if HAS_TILES
template <int... I, class Call>
void unroll(std::integer_sequence<int, I...>, const Call& call) {
  (call(std::integral_constant<int, I>{}), ...);
}

// A microkernel on tiles: sums (DOWN * TILE_ROWS, COUNT * LANES), four tiles of them at a time in tiles 0 to 3. Tiles 4
// and 5 hold rows, 6 and 7 in turn the weight. The part of `depth` that fills no tile is added in registers.
template <int DOWN, int COUNT>
[[gnu::noinline]] void tile_microkernel(const bfloat16* rows, long stride, const bfloat16* panel, long depth,
                                        const float* bias, float* sums, Prefetch next) {
  using M = Multiply<bfloat16>;
  constexpr int ACROSS = std::min(COUNT, 4 / DOWN);
  constexpr long WIDTH = COUNT * LANES, PANEL_BYTES = WIDTH * M::STEP * long(sizeof(bfloat16)),
                 SUMS_BYTES = WIDTH * long(sizeof(float));
  static_assert(LANES == 16);  // columns of a tile
  constexpr auto across = std::make_integer_sequence<int, ACROSS>{};
  const long row_bytes = stride * long(sizeof(bfloat16)), whole = depth - depth % TILE_DEPTH;
  const long ahead = DOWN * TILE_DEPTH * next.per_k * ACROSS / COUNT;  // bytes with each step below
  for (long c = 0; c < WIDTH; c += ACROSS * LANES) {
    unroll(across, [&](auto n) {
      tiles::load<n>(bias + c + n * LANES, 0);  // the same in every row
      if constexpr (DOWN == 2) tiles::load<ACROSS + n>(bias + c + n * LANES, 0);
    });
    for (long k = 0; k < whole; k += TILE_DEPTH) {
      for (long end = ahead; end > 0; end -= 64, next.start += 64) __builtin_prefetch(next.start, 0, 2);
      tiles::load<4>(rows + k, row_bytes);
      if constexpr (DOWN == 2) tiles::load<5>(rows + TILE_ROWS * stride + k, row_bytes);
      unroll(across, [&](auto n) {
        tiles::load<6 + n % 2>(panel + k * WIDTH + (c + n * LANES) * M::STEP, PANEL_BYTES);
        tiles::multiply<n, 4, 6 + n % 2>();
        if constexpr (DOWN == 2) tiles::multiply<ACROSS + n, 5, 6 + n % 2>();
      });
    }
    unroll(across, [&](auto n) {
      tiles::store<n>(sums + c + n * LANES, SUMS_BYTES);
      if constexpr (DOWN == 2) tiles::store<ACROSS + n>(sums + TILE_ROWS * WIDTH + c + n * LANES, SUMS_BYTES);
    });
  }
  if (whole == depth) return;
  for (long r = 0; r < DOWN * TILE_ROWS; ++r)
    for (long c = 0; c < WIDTH; c += LANES) {
      vec sum = load_vec(sums + r * WIDTH + c);
      for (long k = whole; k < depth; k += M::STEP)
        sum = M::add(sum, M::broadcast(rows + r * stride + k), M::weights(panel + k * WIDTH + c * M::STEP));
      store_vec(sums + r * WIDTH + c, sum);
    }
}
#endif

template <class T>
struct Kernel {
  long rows;  // that it multiplies
  void (*run)(const T* rows, long stride, const T* panel, long depth, const float* bias, float* sums, Prefetch next);
};

constexpr long MOST_ROWS = HAS_TILES ? 2 * TILE_ROWS : ROWS;  // of a kernel

// The microkernel for a panel, wide or narrow, and a block of which `rows` are left.
template <class T>
Kernel<T> kernel_for([[maybe_unused]] long rows, bool narrow) {
#if HAS_TILES
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (uses_tiles<T>() && rows > TILE_ROWS)
      return {2 * TILE_ROWS, narrow ? tile_microkernel<2, 1> : tile_microkernel<2, PANEL_VECS>};
    if (uses_tiles<T>()) return {TILE_ROWS, narrow ? tile_microkernel<1, 1> : tile_microkernel<1, PANEL_VECS>};
  }
#endif
  return {ROWS, narrow ? microkernel<1, T> : microkernel<PANEL_VECS, T>};
}

// A packed weight (columns, depth) and its bias (columns,).
template <class T>
struct PackedWeight {
  const T* weight;
  const float* bias;
  long depth, columns;
  long panels() const { return columns / PANEL + columns % PANEL / LANES; }

  // Where element (column, k) lies.
  long index(long column, long k) const {
    constexpr long STEP = Multiply<T>::STEP;
    const long width = column < columns / PANEL * PANEL ? PANEL : LANES, start = column / width * width;
    return start * depth + (k / STEP * width + column - start) * STEP + k % STEP;
  }
};

inline long round_up(long count, long step) { return (count + step - 1) / step * step; }

// Columns of a packed weight, whose last vector is filled up with zeros.
inline long whole_columns(long columns) { return round_up(columns, LANES); }

// One thread's share, [first, last), of `count` items.
struct Range {
  long first, last;
  Range(long count, int thread, int threads) : first(count * thread / threads), last(count * (thread + 1) / threads) {}
};

// Calls store(row, column, vec) for the products of a block's rows, rounded up to whole groups, with some panels of a
// weight.
template <class T, class Store>
void matmul(const T* block, long rows, long stride, const PackedWeight<T>& weight, Range panels, const Store& store) {
  const long whole = weight.columns / PANEL;  // panels of PANEL columns; those after them are narrow
  for (long p = panels.first; p < panels.last; ++p) {
    const bool narrow = p >= whole;
    const long column = narrow ? whole * PANEL + (p - whole) * LANES : p * PANEL, width = narrow ? LANES : PANEL;
    const T* panel = weight.weight + column * weight.depth;
    // the next panel, a part of it with each kernel; behind the last one nothing is known
    const bool more = p + 1 < panels.last;
    Prefetch next = {reinterpret_cast<const char*>(panel + (more ? width * weight.depth : 0)),
                     more ? std::min(64L, round_up(width * long(sizeof(T)) * group_rows<T>() / rows, 4)) : 0};
    for (long r = 0; r < rows;) {
      alignas(64) float sums[MOST_ROWS * PANEL];  // (kernel.rows, width)
      const Kernel<T> kernel = kernel_for<T>(rows - r, narrow);
      kernel.run(block + r * stride, stride, panel, weight.depth, weight.bias + column, sums, next);
      next.start += next.per_k * weight.depth * (kernel.rows / group_rows<T>());
      for (long i = 0; i < kernel.rows; ++i)
        for (long c = 0; c < width; c += LANES) store(r + i, column + c, load_vec(sums + i * width + c));
      r += kernel.rows;
    }
  }
}

// Distance between the rows of a block: at 4096 bytes all of them would fall into one set of the cache.
inline long padded(long depth) { return depth + 2 * LANES; }

enum class Norm : int { none = 0, layer_norm = 1, group_norm = 2 };  // numbers of `ops.linear.NORMS`

// Input (count, depth) of a product, normalized as it is copied: (x - mean) / sigma * gamma + beta over each row, over
// each sample by moments that are known, or not at all.
template <class T>
struct Input {
  const T* x;
  long count, depth;
  Norm norm;
  float eps;             // of layer_norm
  const float* moments;  // of group_norm: (samples, 2), mean and 1 / sigma of each sample of `positions` rows
  long positions;
  const float *gamma = nullptr, *beta = nullptr;  // (depth,), or null: 1 and 0; a beta needs a gamma

  long stride() const { return padded(depth); }

  // Copies rows [first, last) to `out`, `stride()` apart.
  void copy(long first, long last, T* out) const {
    for (long r = first; r < last; ++r, out += stride()) {
      const T* row = x + r * depth;
      float mean = 0, inverse = 1;
      if (norm == Norm::group_norm) {
        mean = moments[2 * (r / positions)];
        inverse = moments[2 * (r / positions) + 1];
      } else if (norm == Norm::layer_norm) {
        vec sum = {}, squares = {};
        for (long c = 0; c < depth; c += LANES) sum += load_vec(row + c);
        mean = sum_lanes(sum) / float(depth);
        for (long c = 0; c < depth; c += LANES) {
          const vec distance = load_vec(row + c) - mean;
          squares += distance * distance;
        }
        inverse = 1 / std::sqrt(sum_lanes(squares) / float(depth) + eps);
      } else {
        std::memcpy(out, row, depth * sizeof(T));
        continue;
      }
      for (long c = 0; c < depth; c += LANES) {
        vec value = (load_vec(row + c) - mean) * inverse;
        if (gamma) value = value * load_vec(gamma + c) + (beta ? load_vec(beta + c) : vec{});
        store_vec(out + c, value);
      }
    }
  }
};

enum class Act : int { none = 0, relu = 1, squared_relu = 2, gelu = 3 };  // numbers of `ops.linear.ACTS`

// GELU is x * cdf(x), where cdf(x) = 1/2 + x * p(x^2), p a minimax polynomial for |x| <= MAX, beyond which cdf is 0 or
// 1 to the type's last place. x * cdf(x) errs by 1e-6 for float, by 2.5e-5 for bfloat16.
template <class T>
struct NormalCdf;

template <>
struct NormalCdf<float> {
  static constexpr float MAX = 5.2f;
  static constexpr float TERMS[] = {8.5876719e-4f,   -2.50371196e-3f, 2.85360753e-3f,  -3.50572797e-3f, 7.55783636e-3f,
                                    -1.31033314e-2f, 1.83871612e-2f,  -2.45934110e-2f, 3.19072641e-2f,  -3.99412997e-2f,
                                    5.00301681e-2f,  -6.77434057e-2f, 1.35949939e-1f};
};

template <>
struct NormalCdf<bfloat16> {
  static constexpr float MAX = 4.4f;
  static constexpr float TERMS[] = {2.75413366e-3f,  -7.88414571e-3f, 1.09878862e-2f,  -1.59770362e-2f, 2.68021717e-2f,
                                    -4.00892161e-2f, 5.52505255e-2f,  -7.86123127e-2f, 1.60404414e-1f};
};

template <class T>
vec clamp_below(vec x) {
  return max_vec(vec{} - NormalCdf<T>::MAX, x);
}

// cdf of x >= -MAX by Horner's rule in u = 2 x^2 / MAX^2 - 1, which is in [-1, 1].
template <class T>
vec normal_cdf(vec x) {
  constexpr float MAX = NormalCdf<T>::MAX;
  const vec near = min_vec(vec{} + MAX, x);
  const vec u = near * near * (2 / (MAX * MAX)) - 1.0f;
  vec y = {};
  for (float term : NormalCdf<T>::TERMS) y = y * u + term;
  return y * near + 0.5f;
}

template <Act act, class T>
vec activate(vec x) {
  if constexpr (act == Act::gelu) {
    x = clamp_below<T>(x);  // below, cdf is as good as 0, and x may be large
    return x * normal_cdf<T>(x);
  }
  if constexpr (act == Act::relu || act == Act::squared_relu) x = x < 0 ? vec{} : x;
  if constexpr (act == Act::squared_relu) x = x * x;
  return x;
}

// Calls with the activation as a compile-time constant.
template <class Call>
void dispatch(Act act, const Call& call) {
  switch (act) {
    case Act::none: return call(std::integral_constant<Act, Act::none>{});
    case Act::relu: return call(std::integral_constant<Act, Act::relu>{});
    case Act::squared_relu: return call(std::integral_constant<Act, Act::squared_relu>{});
    case Act::gelu: return call(std::integral_constant<Act, Act::gelu>{});
  }
}

// out = sum + residual_scale * residual, (rows, columns). The residual may be `out` itself: each element is read before
// it is written. A packed weight has whole vectors of columns; of its last one only those of `out` are written.
template <class T>
struct Output {
  const T* residual;            // or null: nothing is added
  const float* residual_scale;  // (columns,), or null: 1
  T* out;
  long columns;

  void operator()(long row, long column, vec sum) const {
    const long i = row * columns + column;
    if (columns - column < LANES) {
      for (long c = 0; c < columns - column; ++c) {
        const float scale = residual_scale ? residual_scale[column + c] : 1.0f;
        store(out + i + c, residual ? sum[c] + scale * load(residual + i + c) : sum[c]);
      }
      return;
    }
    if (residual)
      sum += residual_scale ? load_vec(residual_scale + column) * load_vec(residual + i) : load_vec(residual + i);
    store_vec(out + i, sum);
  }
};

// 64-byte aligned memory that a thread keeps between calls.
inline char* scratch(long bytes) {
  static thread_local std::vector<char> buffer;
  if (long(buffer.size()) < bytes + 64) buffer.resize(bytes + 64);
  return buffer.data() + (64 - reinterpret_cast<uintptr_t>(buffer.data()) % 64) % 64;
}

// Bytes of a core's L2 cache, asked for once: 0.5 to 2 MiB, as virtual machines may report more than there is; 1 MiB
// where nothing is known.
inline long l2_bytes() {
  static const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return found > 0 ? std::clamp(found, 512L << 10, 2L << 20) : 1L << 20;
}

// Rows of a block whose rows of `bytes` each are to fill `cache` bytes of each MiB of the L2 cache.
template <class T>
long block_rows(long cache, long bytes, long group = group_rows<T>()) {
  return std::max(1L, cache * (l2_bytes() >> 10) / 1024 / bytes / group) * group;
}

// How threads share rows: where there are many, each has its own groups of them; where there are few, below 48 each and
// in groups that do not come out even, all work on the same block of rows, each with some of the weight's columns.
struct Team {
  bool together;
  int thread, threads;
  Range groups;

  Team(long count, long group, int thread_, int threads_)
      : together(count % threads_ && count * group < 48 * threads_),
        thread(together ? thread_ : 0),
        threads(together ? threads_ : 1),
        groups(count, together ? 0 : thread_, together ? 1 : threads_) {}

  Range share(long count) const { return Range(count, thread, threads); }

  void wait() const {
    if (together) {
#pragma omp barrier
    }
  }
};

// Makes a thread ready for products of T as long as this lives.
template <class T>
struct Ready {
  Ready() {
    if (uses_tiles<T>()) tiles::configure();
  }
  ~Ready() {
    if (uses_tiles<T>()) tiles::release();
  }
};

// Calls work(team, block, first, rows) for one block of rows after the other, in `threads` threads. A block is memory
// for at most `most` rows of `bytes` each, `most` by block_rows; a team that works together shares one.
template <class T, class Work>
void parallel_rows(long rows, long bytes, long most, int threads, const Work& work) {
  const long group = group_rows<T>();
  char* shared = nullptr;
#pragma omp parallel num_threads(threads)
  {
    const Ready<T> ready;
    const Team team((rows + group - 1) / group, group, omp_get_thread_num(), omp_get_num_threads());
    char* block = scratch(bytes * most);
    if (team.together) {
#pragma omp single
      shared = block;  // an implicit barrier follows
      block = shared;
    }
    const long end = std::min(rows, team.groups.last * group);
    for (long first = team.groups.first * group; first < end; first += most) {
      work(team, block, first, std::min(most, end - first));
      team.wait();  // the block is written anew
    }
  }
}
