// Mean and variance of many numbers that lie side by side.
#pragma once
#include <algorithm>
#include <cmath>

#include "number.h"

// Sums of distances from some number near the mean: squares of the numbers themselves would cancel.
struct Sums {
  double first = 0, second = 0;

  void add(const Sums& other) {
    first += other.first;
    second += other.second;
  }
};

template <class T>
Sums sums(const T* x, long count, float near) {
  Sums total;
  for (long start = 0; start < count; start += 4096) {  // short enough for float
    long end = std::min(count, start + 4096);
    float first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
    for (long i = start; i < end; ++i) {
      float distance = load(x + i) - near;
      first += distance;
      second += distance * distance;
    }
    total.add({first, second});
  }
  return total;
}

struct Moments {
  float mean, inverse_deviation;

  Moments(const Sums& total, double count, float near, float eps) {
    double offset = total.first / count;
    double variance = total.second / count - offset * offset;
    variance = variance < 0 ? 0 : variance;  // what is no number stays none
    mean = float(near + offset);
    inverse_deviation = float(1 / std::sqrt(variance + eps));
  }
};
