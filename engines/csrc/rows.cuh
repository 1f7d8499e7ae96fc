// A row of numbers of 2 bytes in the registers of a warp, 8 neighbours for each lane at a time.
#pragma once

#ifdef MCDRL_EMULATE
#include "emulation.h"
#else
#include "device.cuh"
#endif

#include <cstddef>
#include <cstdint>

namespace mcdrl_rt {

template <typename T, int kPieces>
__device__ inline void load_row(const T* row, int dim, int lane, Eight (&values)[kPieces]) {
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = (i * kWarp + lane) * 8;
    values[i] = column < dim ? load(row + column) : Eight{{0, 0, 0, 0}};
  }
}

template <typename T>
__device__ inline float number(const Eight& eight, int i) {
  return i % 2 ? high(eight.pair[i / 2], T()) : low(eight.pair[i / 2], T());
}

// The sum of 8 numbers as a tree: additions that do not wait for one another.
__device__ inline float tree(const float (&x)[8]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// Mean and 1/√(variance + eps) of a row, in two passes; what lies beyond it is zero.
struct Moments {
  float mean, scale;
};

template <typename T, int kPieces>
__device__ inline Moments moments(const Eight (&values)[kPieces], int dim, int lane, float eps) {
  float sum = 0, square = 0;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    float x[8];
    for (int j = 0; j < 8; ++j) x[j] = number<T>(values[i], j);
    sum += tree(x);
  }
  const float mean = warp_sum(sum) / dim;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    float x[8];
    for (int j = 0; j < 8; ++j) {
      const float centred = number<T>(values[i], j) - mean;
      x[j] = centred * centred;
    }
    if ((i * kWarp + lane) * 8 < dim) square += tree(x);
  }
  return {mean, rsqrtf(warp_sum(square) / dim + eps)};
}

}  // namespace mcdrl_rt
