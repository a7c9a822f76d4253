// The mean of the 3 by 3 neighbours inside the map, less the token, of tokens (B, H, W, C), or this map's transpose.
#include <omp.h>

#include <vector>

#include "number.h"

namespace {

float share(long at, long end) { return 1.0f / float(1 + (at > 0) + (at + 1 < end)); }

template <class T>
void run(const T* x, T* out, long batch, long height, long width, long channels, bool transposed, int threads) {
  const long row = width * channels;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> room(row + 2 * channels, 0.0f);  // sums over three rows, a column of zeros at either end
    float* column = room.data() + channels;
#pragma omp for schedule(static)
    for (long line = 0; line < batch * height; ++line) {
      const long h = line % height;
      const T* here = x + line * row;
      const bool above = h > 0, below = h + 1 < height;
      const T *up = above ? here - row : here, *down = below ? here + row : here;
      const float middle = transposed ? share(h, height) : 1.0f;
      const float high = !above ? 0.0f : transposed ? share(h - 1, height) : 1.0f;
      const float low = !below ? 0.0f : transposed ? share(h + 1, height) : 1.0f;
      for (long w = 0; w < width; ++w) {
        const float factor = transposed ? share(w, width) : 1.0f;
        const long at = w * channels;
#pragma omp simd
        for (long c = 0; c < channels; ++c)
          column[at + c] =
              factor * (middle * load(here + at + c) + high * load(up + at + c) + low * load(down + at + c));
      }
      for (long w = 0; w < width; ++w) {
        const float factor = transposed ? 1.0f : share(h, height) * share(w, width);
        const float* sum = room.data() + w * channels;
        const long at = w * channels;
#pragma omp simd
        for (long c = 0; c < channels; ++c)
          store(out + line * row + at + c,
                factor * (sum[c] + sum[c + channels] + sum[c + 2 * channels]) - load(here + at + c));
      }
    }
  }
}

}  // namespace

#define STENCIL(T, suffix) \
  extern "C" void stencil_##suffix(const T* x, T* out, long batch, long height, long width, long channels, \
                                   int transposed, int threads) { \
    run(x, out, batch, height, width, channels, transposed != 0, threads); \
  }
STENCIL(float, float32)
STENCIL(bfloat16, bfloat16)
