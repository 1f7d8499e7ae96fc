// A decoder's next level: coarse features at a finer resolution, and beside them sharp ones behind a gate. Channels of a
// pixel are neighbours; one thread makes 8 of one pixel.
#pragma once

#include "rows.cuh"

namespace mcdrl_rt {

constexpr int kLiftThreads = 256;

struct LiftArguments {
  const void* coarse;  // (B, h, w, c)
  const void* gate;    // (B, h, w, s)
  const void* sharp;   // (B, h', w', s)
  void* out;           // (B, H, W, c + s)
  int coarse_height, coarse_width, coarse_channels;
  int sharp_height, sharp_width, sharp_channels;
  int height, width;
};

// Between which two lines of a picture one of another's lies, corners not aligned.
struct Between {
  int first, second;
  float weight;  // of the second
};

__device__ inline Between between(int place, int from, int to) {
  const float source = fmaxf((place + 0.5f) * (static_cast<float>(from) / to) - 0.5f, 0.0f);
  const int first = min(static_cast<int>(source), from - 1);
  return {first, min(first + 1, from - 1), source - first};
}

// 8 channels of a picture (height, width, channels) between its pixels; `kGate`: of the logistic function of it.
template <typename T, bool kGate>
__device__ inline void sample(const T* picture, int width, int channels, Between row, Between column, float (&out)[8]) {
  const int rows[2] = {row.first, row.second}, columns[2] = {column.first, column.second};
  const float down[2] = {1 - row.weight, row.weight}, right[2] = {1 - column.weight, column.weight};
  Eight eights[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    eights[i] = load(picture + (static_cast<size_t>(rows[i / 2]) * width + columns[i % 2]) * channels);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    out[j] = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = number<T>(eights[i], j);
      out[j] += down[i / 2] * right[i % 2] * (kGate ? 1.0f / (1.0f + expf(-x)) : x);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kLiftThreads) lift(LiftArguments arguments) {
  const int channels = arguments.coarse_channels + arguments.sharp_channels, groups = channels / 8;
  const int i = blockIdx.x * kLiftThreads + threadIdx.x, y = blockIdx.y;
  if (i >= arguments.width * groups) return;
  wait_for_last_kernel();
  const int x = i / groups, channel = i % groups * 8;
  const Between row = between(y, arguments.coarse_height, arguments.height);
  const Between column = between(x, arguments.coarse_width, arguments.width);
  const size_t pixels = static_cast<size_t>(blockIdx.z) * arguments.coarse_height * arguments.coarse_width;
  float values[8];
  if (channel < arguments.coarse_channels) {
    const T* coarse = static_cast<const T*>(arguments.coarse) + pixels * arguments.coarse_channels + channel;
    sample<T, false>(coarse, arguments.coarse_width, arguments.coarse_channels, row, column, values);
  } else {
    const int own = channel - arguments.coarse_channels, width = arguments.sharp_width;
    const T* gate = static_cast<const T*>(arguments.gate) + pixels * arguments.sharp_channels + own;
    const T* sharp = static_cast<const T*>(arguments.sharp) +
                     static_cast<size_t>(blockIdx.z) * arguments.sharp_height * width * arguments.sharp_channels + own;
    float detail[8];
    sample<T, true>(gate, arguments.coarse_width, arguments.sharp_channels, row, column, values);
    sample<T, false>(sharp, width, arguments.sharp_channels, between(y, arguments.sharp_height, arguments.height),
                     between(x, width, arguments.width), detail);
#pragma unroll
    for (int j = 0; j < 8; ++j) values[j] *= detail[j];
  }
  Eight eight;
#pragma unroll
  for (int j = 0; j < 4; ++j) eight.pair[j] = pack(values[2 * j], values[2 * j + 1], T());
  const size_t pixel = (static_cast<size_t>(blockIdx.z) * arguments.height + y) * arguments.width + x;
  *reinterpret_cast<Eight*>(static_cast<T*>(arguments.out) + pixel * channels + channel) = eight;
}

}  // namespace mcdrl_rt
