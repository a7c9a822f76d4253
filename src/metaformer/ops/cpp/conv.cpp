// Strided convolution of x (batch, height, width, channels), as patch embeddings compute it: a product of patches.
//
//   out[b][oy][ox] = W patch(b, oy, ox) + bias
//
// where the patch (kernel, kernel, channels) begins at row oy * stride - padding, column ox * stride - padding of x,
// with zeros outside. The weight is packed with its inputs in that order, and filled up to an even `depth` with zeros.
// Patches are not written to memory: a block of them at a time stays in the L2 cache.
#include <algorithm>

#include "matmul.h"

namespace {

constexpr long CONV_CACHE = 640 << 10;  // bytes of each MiB of the L2 cache for patches

struct Geometry {
  long batch, height, width, channels, kernel, stride, padding, out_height, out_width;
  long row() const { return width * channels; }
  long patches() const { return batch * out_height * out_width; }
};

// Copies `count` numbers by whole registers; what is written too much lies in the patch's next row, which is written
// later, or in the padding behind the patch.
template <class T>
inline void copy_registers(const T* from, long count, T* to) {
  constexpr long STEP = sizeof(vec) / sizeof(T);
  for (long i = 0; i < count; i += STEP) std::memcpy(to + i, from + i, sizeof(vec));
}

// Copies patches [first, last) of x to `out`, `stride` apart, and zeros behind each up to `depth`.
template <class T>
void gather(const T* x, const Geometry& g, long first, long last, long depth, T* out, long stride) {
  const T* end = x + g.batch * g.height * g.row();
  const long line = g.kernel * g.channels, reach = (g.kernel - 1) * g.row() + line + long(sizeof(vec) / sizeof(T));
  long sample = first / (g.out_height * g.out_width), oy = first / g.out_width % g.out_height, ox = first % g.out_width;
  for (long i = first; i < last; ++i, out += stride) {
    const long top = oy * g.stride - g.padding, left = ox * g.stride - g.padding;
    const T* corner = x + (sample * g.height + top) * g.row() + left * g.channels;
    const bool inside = top >= 0 && left >= 0 && top + g.kernel <= g.height && left + g.kernel <= g.width;
    if (inside && corner + reach <= end) {
      for (long ky = 0; ky < g.kernel; ++ky) copy_registers(corner + ky * g.row(), line, out + ky * line);
    } else {
      const long before = std::max(0L, -left), after = std::max(0L, left + g.kernel - g.width);  // columns outside
      const long columns = g.kernel - before - after;
      std::fill_n(out, g.kernel * line, T(0));
      for (long ky = std::max(0L, -top); ky < std::min(g.kernel, g.height - top) && columns > 0; ++ky)
        std::copy_n(corner + ky * g.row() + before * g.channels, columns * g.channels,
                    out + ky * line + before * g.channels);
    }
    std::fill_n(out + g.kernel * line, depth - g.kernel * line, T(0));
    if (++ox == g.out_width) {
      ox = 0;
      if (++oy == g.out_height) oy = 0, ++sample;
    }
  }
}

template <class T>
void convolve(const T* x, const Geometry& g, const PackedWeight<T>& weight, const Output<T>& output, int threads) {
  const long stride = padded(weight.depth), bytes = stride * long(sizeof(T)), most = block_rows<T>(CONV_CACHE, bytes);
  parallel_rows<T>(g.patches(), bytes, most, threads, [&](const Team& team, char* memory, long from, long rows) {
    T* block = reinterpret_cast<T*>(memory);  // (rows, stride)
    const Range own = team.share(rows);
    gather(x, g, from + own.first, from + own.last, weight.depth, block + own.first * stride, stride);
    team.wait();
    matmul(block, rows, stride, weight, team.share(weight.panels()), [&](long r, long c, vec sum) {
      if (r < rows) output(from + r, c, sum);  // matmul rounds rows up
    });
  });
}

}  // namespace

#define KERNELS(T, suffix) \
  extern "C" void conv_##suffix(const T* x, const T* weight, const float* bias, T* out, long batch, long height, \
                                long width, long channels, long kernel, long stride, long padding, long depth, \
                                long columns, int threads) { \
    const long out_height = (height + 2 * padding - kernel) / stride + 1; \
    const long out_width = (width + 2 * padding - kernel) / stride + 1; \
    convolve(x, Geometry{batch, height, width, channels, kernel, stride, padding, out_height, out_width}, \
             PackedWeight<T>{weight, bias, depth, whole_columns(columns)}, Output<T>{nullptr, nullptr, out, columns}, \
             threads); \
  }
KERNELS(float, float32)
KERNELS(bfloat16, bfloat16)
