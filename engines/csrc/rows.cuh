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
    values[i] = column < dim ? load_constant(row + column) : Eight{{0, 0, 0, 0}};
  }
}

template <typename T>
__device__ inline float number(const Eight& eight, int i) {
  return i % 2 ? high(eight.pair[i / 2], T()) : low(eight.pair[i / 2], T());
}

// Mean and 1/√(variance + eps) of a row, in two passes; what lies beyond it is zero.
struct Moments {
  float mean, scale;
};

template <typename T, int kPieces>
__device__ inline Moments moments(const Eight (&values)[kPieces], int dim, int lane, float eps) {
  float sum = 0, square = 0;
#pragma unroll
  for (int i = 0; i < 8 * kPieces; ++i) sum += number<T>(values[i / 8], i % 8);
  const float mean = warp_sum(sum) / dim;
#pragma unroll
  for (int i = 0; i < 8 * kPieces; ++i) {
    const float centred = number<T>(values[i / 8], i % 8) - mean;
    if ((i / 8 * kWarp + lane) * 8 < dim) square += centred * centred;
  }
  return {mean, rsqrtf(warp_sum(square) / dim + eps)};
}

}  // namespace mcdrl_rt
