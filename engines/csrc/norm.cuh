// LayerNorm of rows, and beside it the rows plus a constant: what a transformer's branch starts from, and what its last
// product is added to. One warp a row.
#pragma once

#include "rows.cuh"

namespace mcdrl_rt {

constexpr int kNormWarps = 4;

struct NormArguments {
  const void* x;       // (rows, d)
  const void* weight;  // (d,) or null
  const void* bias;    // (d,) or null
  const void* shift;   // (d,)
  void* normed;        // (rows, d)
  void* shifted;       // (rows, d)
  int rows, dim;
  float eps;
};

// kPieces: 16-byte loads of a lane for a row.
template <typename T, int kPieces>
__global__ void __launch_bounds__(kNormWarps* kWarp) norm_shift(NormArguments arguments) {
  const int lane = threadIdx.x % kWarp, row = blockIdx.x * kNormWarps + threadIdx.x / kWarp, dim = arguments.dim;
  if (row >= arguments.rows) return;  // the same for the whole warp
  wait_for_last_kernel();
  const size_t offset = static_cast<size_t>(row) * dim;
  Eight x[kPieces];
  load_row(static_cast<const T*>(arguments.x) + offset, dim, lane, x);
  Eight weights[kPieces] = {}, biases[kPieces] = {}, shifts[kPieces];  // all asked for before any is waited for
  load_row(static_cast<const T*>(arguments.shift), dim, lane, shifts);
  if (arguments.weight) load_row(static_cast<const T*>(arguments.weight), dim, lane, weights);
  if (arguments.bias) load_row(static_cast<const T*>(arguments.bias), dim, lane, biases);
  const auto [mean, scale] = moments<T>(x, dim, lane, arguments.eps);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = (i * kWarp + lane) * 8;
    if (column >= dim) continue;
    const Eight shift = shifts[i], weight = weights[i], bias = biases[i];
    Eight normed, shifted;
    float out[8], moved[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float value = number<T>(x[i], j);
      out[j] = (value - mean) * scale * (arguments.weight ? number<T>(weight, j) : 1.0f) + number<T>(bias, j);
      moved[j] = value + number<T>(shift, j);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      normed.pair[j] = pack(out[2 * j], out[2 * j + 1], T());
      shifted.pair[j] = pack(moved[2 * j], moved[2 * j + 1], T());
    }
    *reinterpret_cast<Eight*>(static_cast<T*>(arguments.normed) + offset + column) = normed;
    *reinterpret_cast<Eight*>(static_cast<T*>(arguments.shifted) + offset + column) = shifted;
  }
}

}  // namespace mcdrl_rt
