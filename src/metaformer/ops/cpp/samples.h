// Samples shared among threads, and sums and moments over a sample.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

// Threads that work on a sample: one on a sample of its own, or all on one, each on some of its rows.
struct Crew {
  int thread, threads;
  double* parts;  // (threads, ...), where they exchange sums

  long first(long rows) const { return rows * thread / threads; }
  long last(long rows) const { return rows * (thread + 1) / threads; }

  // Each of `count` numbers becomes its sum over the threads, added in their order: all get the same bits.
  void sum(double* numbers, long count) const {
    if (threads == 1) return;
    std::copy_n(numbers, count, parts + thread * count);
#pragma omp barrier
    for (long i = 0; i < count; ++i) {
      numbers[i] = 0;
      for (int t = 0; t < threads; ++t) numbers[i] += parts[t * count + i];
    }
#pragma omp barrier  // `parts` is written anew
  }
};

// Calls start() once in each of `wanted` threads, and what it gives with every sample and its crew. A thread takes whole
// samples, which its cache holds; those left over are split. At most `sums` numbers are added up at once.
template <class Start>
void for_samples(long batch, long sums, int wanted, const Start& start) {
  std::vector<double> parts(wanted * sums);
#pragma omp parallel num_threads(wanted)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const long whole = batch - batch % threads;
    auto work = start();
    for (long b = thread; b < whole; b += threads) work(b, Crew{0, 1, nullptr});
    for (long b = whole; b < batch; ++b) work(b, Crew{thread, threads, parts.data()});
  }
}

// Sums of distances from a pivot near the mean, and of their squares: squares of the numbers themselves would cancel.
struct Sums {
  double values[2] = {0, 0};

  void add(double first, double second) {
    values[0] += first;
    values[1] += second;
  }
};

template <class T>
void add_sums(const T* x, long count, float pivot, Sums& total) {
  for (long start = 0; start < count; start += 4096) {  // short enough for float
    long end = std::min(count, start + 4096);
    float first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
    for (long i = start; i < end; ++i) {
      float distance = load(x + i) - pivot;
      first += distance;
      second += distance * distance;
    }
    total.add(first, second);
  }
}

struct Moments {
  float mean, inverse_deviation;

  Moments(const Sums& total, double count, float pivot, float eps) {
    double offset = total.values[0] / count;
    double variance = total.values[1] / count - offset * offset;
    variance = variance < 0 ? 0 : variance;  // NaN stays NaN
    mean = float(pivot + offset);
    inverse_deviation = float(1 / std::sqrt(variance + eps));
  }

  // Moments of a sample (rows, row), by its crew.
  template <class T>
  static Moments of(const T* x, long rows, long row, float eps, const Crew& crew) {
    const float pivot = load(x);
    Sums total;
    add_sums(x + crew.first(rows) * row, (crew.last(rows) - crew.first(rows)) * row, pivot, total);
    crew.sum(total.values, 2);
    return Moments(total, double(rows * row), pivot, eps);
  }

  void store(float* p) const {
    p[0] = mean;
    p[1] = inverse_deviation;
  }
};
