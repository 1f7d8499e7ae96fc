// What the kernels can be asked to do, for any binding: raw pointers, a stream, no framework.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace mcdrl_rt {

enum class Scalar { kHalf, kBFloat16 };

// The names are those of mcdrl_rt/ops.py.
struct Shape {
  int batch;        // B
  int tokens;       // T, rows of the input of each batch element
  int count;        // N, rows of the output; T for intervene
  int dim;          // d
  int classes;      // K; 0 for intervene
  int heads;
  int confounders;  // M
  float eps;        // of the LayerNorm
  float norm_eps;   // of the LayerNorm of the result, where that is asked for
};

// Contiguous, 16-byte aligned device memory; everything but indices, readout and workspace in the Scalar type.
struct Buffers {
  const void* features;  // (B, T, d)
  const void* texts;     // (K, d); null for intervene
  const void* a;         // (heads·M, d)
  const void* c;         // (heads·M,)
  const void* b;         // (d, heads·M)
  const void* shift;     // (d,), or null: then out is the result itself, and there is no normed
  void* out;             // (B, N, d), the result plus shift
  void* normed;          // (B, N, d), the norm of the result
  int64_t* indices;      // (B, N); null for intervene
  float* readout;        // (B, N, M)
  void* workspace;       // workspace_bytes(), contents do not matter
};

// Why the kernels do not take a shape, as a phrase; null where they do. A caller then uses another implementation.
const char* unsupported(const Shape& shape);

// Device memory a launch needs, in bytes.
size_t workspace_bytes(const Shape& shape);

// F = the N rows most like a text, best first, ties to the lower index; then F + softmax(norm(F)·aᵀ + c)·bᵀ, and the
// softmax averaged over heads. With a shift, what a branch that follows needs of it (norm_shift below). Two launches on `stream`, no synchronisation; can be captured in a graph.
cudaError_t select_intervene(const Shape& shape, Scalar type, const Buffers& buffers, cudaStream_t stream);

// The same on all rows as they are.
cudaError_t intervene(const Shape& shape, Scalar type, const Buffers& buffers, cudaStream_t stream);

// Rows of a LayerNorm, and the rows plus a constant; contiguous, 16-byte aligned, all in the Scalar type.
struct NormBuffers {
  const void* x;       // (rows, d)
  const void* weight;  // (d,) or null: ones
  const void* bias;    // (d,) or null: zeros
  const void* shift;   // (d,)
  void* normed;        // (rows, d)
  void* shifted;       // (rows, d): x + shift
};

// Whether norm_shift takes rows of d numbers.
bool norm_takes(int dim);

// One launch on `stream`.
cudaError_t norm_shift(int rows, int dim, float eps, Scalar type, const NormBuffers& buffers, cudaStream_t stream);

// Pictures with the channels of a pixel as neighbours; contiguous, 16-byte aligned, all in the Scalar type.
struct LiftShape {
  int batch;
  int coarse_height, coarse_width, coarse_channels;
  int sharp_height, sharp_width, sharp_channels;
  int height, width;  // of the result
};

// Whether lift takes a shape.
bool lift_takes(const LiftShape& shape);

// coarse (B, h, w, c), gate (B, h, w, s) and sharp (B, h', w', s) at H × W: coarse, then sharp times the gate's logistic
// function, in out (B, H, W, c + s). One launch on `stream`.
cudaError_t lift(const LiftShape& shape, Scalar type, const void* coarse, const void* gate, const void* sharp, void* out,
                 cudaStream_t stream);

}  // namespace mcdrl_rt
