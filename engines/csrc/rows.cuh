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

// LayerNorm of a row, and the row plus a constant; weight and bias of the norm are null where it has none.
template <typename T, int kPieces>
__device__ inline void write_norm_and_shift(const Eight (&x)[kPieces], int dim, float eps, const Eight (&shifts)[kPieces],
                                            T* normed, T* shifted, const T* weight = nullptr, const T* bias = nullptr) {
  const int lane = threadIdx.x % kWarp;
  Eight weights[kPieces] = {}, biases[kPieces] = {};  // all asked for before any is waited for
  if (weight) load_row(weight, dim, lane, weights);
  if (bias) load_row(bias, dim, lane, biases);
  const auto [mean, scale] = moments<T>(x, dim, lane, eps);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = (i * kWarp + lane) * 8;
    if (column >= dim) continue;
    float out[8], moved[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float value = number<T>(x[i], j);
      out[j] = (value - mean) * scale * (weight ? number<T>(weights[i], j) : 1.0f) + number<T>(biases[i], j);
      moved[j] = value + number<T>(shifts[i], j);
    }
    Eight one, other;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      one.pair[j] = pack(out[2 * j], out[2 * j + 1], T());
      other.pair[j] = pack(moved[2 * j], moved[2 * j + 1], T());
    }
    *reinterpret_cast<Eight*>(normed + column) = one;
    *reinterpret_cast<Eight*>(shifted + column) = other;
  }
}

}  // namespace mcdrl_rt
