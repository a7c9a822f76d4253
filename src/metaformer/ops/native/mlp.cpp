// A channel MLP with its norm and shortcut: act(norm(x) W + b) W' + b' + keep * past. The hidden map is not written:
// some rows of it at a time stay in the second cache. In training it is, before the activation.
#include "product.h"

namespace {

constexpr long CACHE = 250 << 10;  // bytes of hidden rows at a time

template <Act act, class T>
void run(const Rows<T>& x, const Layer<T>& first, const Layer<T>& second, const Joined<T>& joined, T* before,
         int threads) {
  const long narrow = x.stride(), wide = padded(first.columns), most = CACHE / (wide * long(sizeof(T))) / ROWS;
  const long bytes = (narrow + wide) * long(sizeof(T)), whole = std::max(1L, most) * ROWS;
  by_rows(x.count, bytes, most, threads, [&](const Team& team, char* room, long from, long rows) {
    T* block = reinterpret_cast<T*>(room);
    T* hidden = block + whole * narrow;
    const Part fetched = team.part(rows);
    x.fetch(from + fetched.first, from + fetched.last, block + fetched.first * narrow);
    team.wait();
    multiply(block, rows, narrow, first, team.part(first.panels()), [&](long r, long c, lanes sum) {
      if (before && r < rows) write(before + (from + r) * first.columns + c, sum);
      write(hidden + r * wide + c, activated<act, T>(sum));
    });
    team.wait();
    multiply(hidden, rows, wide, second, team.part(second.panels()), [&](long r, long c, lanes sum) {
      if (r < rows) joined(from + r, c, sum);
    });
  });
}

}  // namespace

#define MLP(T, suffix) \
  extern "C" void mlp_##suffix(const T* x, const float* moments, const T* weight, const float* bias, \
                               const T* weight2, const float* bias2, const T* past, const float* keep, T* out, \
                               T* before, long samples, long positions, long dim, long hidden, int norm, int act, float eps, \
                               int threads) { \
    const Rows<T> rows{x, samples * positions, dim, Norm(norm), eps, moments, positions}; \
    const Layer<T> first{weight, bias, dim, hidden}, second{weight2, bias2, hidden, dim}; \
    with(Act(act), [&](auto act_) { run<act_>(rows, first, second, Joined<T>{past, keep, out, dim}, before, threads); }); \
  }
MLP(float, float32)
MLP(bfloat16, bfloat16)
