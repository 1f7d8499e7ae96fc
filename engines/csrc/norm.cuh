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
  const int row = blockIdx.x * kNormWarps + threadIdx.x / kWarp, dim = arguments.dim;
  if (row >= arguments.rows) return;  // the same for the whole warp
  wait_for_last_kernel();
  const size_t offset = static_cast<size_t>(row) * dim;
  Eight x[kPieces], shifts[kPieces];
  load_row(static_cast<const T*>(arguments.x) + offset, dim, threadIdx.x % kWarp, x);
  load_row(static_cast<const T*>(arguments.shift), dim, threadIdx.x % kWarp, shifts);
  write_norm_and_shift<T>(x, dim, arguments.eps, shifts,
                          static_cast<T*>(arguments.normed) + offset, static_cast<T*>(arguments.shifted) + offset,
                          static_cast<const T*>(arguments.weight), static_cast<const T*>(arguments.bias));
}

}  // namespace mcdrl_rt
