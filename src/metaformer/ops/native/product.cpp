// One product with what lies around it: act(norm(x) W + b) + keep * past.
#include "product.h"

namespace {

constexpr long CACHE = 256 << 10;  // bytes of rows at a time

template <Act act, class T>
void run(const Rows<T>& x, const Layer<T>& layer, const Joined<T>& joined, int threads) {
  const long stride = x.stride(), bytes = stride * long(sizeof(T));
  by_rows(x.count, bytes, CACHE / bytes / ROWS, threads, [&](const Team& team, char* room, long from, long rows) {
    T* block = reinterpret_cast<T*>(room);
    const Part fetched = team.part(rows);
    x.fetch(from + fetched.first, from + fetched.last, block + fetched.first * stride);
    team.wait();
    multiply(block, rows, stride, layer, team.part(layer.panels()), [&](long r, long c, lanes sum) {
      if (r < rows) joined(from + r, c, activated<act, T>(sum));
    });
  });
}

}  // namespace

#define PRODUCT(T, suffix) \
  extern "C" void product_##suffix(const T* x, const T* weight, const float* bias, const T* past, const float* keep, \
                                   T* out, long rows, long depth, long columns, int norm, int act, float eps, \
                                   int threads) { \
    const Rows<T> map{x, rows, depth, Norm(norm), eps, nullptr, 1}; \
    with(Act(act), [&](auto act_) { \
      run<act_>(map, Layer<T>{weight, bias, depth, columns}, Joined<T>{past, keep, out, columns}, threads); \
    }); \
  }
PRODUCT(float, float32)
PRODUCT(bfloat16, bfloat16)

// Types that these products were measured for, and found as quick as oneDNN's: 1 for float, 2 for bfloat16.
extern "C" int products() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  return 3;
#elif defined(__AVX2__) && defined(__FMA__)
  return 1;
#else
  return 0;
#endif
}

extern "C" int lanes_of_register() { return LANES; }
extern "C" int columns_of_panel() { return PANEL; }
