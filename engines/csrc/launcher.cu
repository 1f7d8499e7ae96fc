// Shapes, workspace and launches of the kernels.
#include "launcher.h"

#include "kernels.cuh"

namespace mcdrl_rt {
namespace {

constexpr size_t kAlign = 256;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int blocks(const Shape& shape) { return (shape.tokens + kRows - 1) / kRows; }

int columns(const Shape& shape) { return shape.heads * shape.confounders; }

size_t needed_shared(const Shape& shape) {
  return shared_bytes(shape.dim, columns(shape), shape.classes ? shape.tokens : 0);
}

Arguments bind(const Shape& shape, const Buffers& buffers) {
  auto* workspace = static_cast<unsigned char*>(buffers.workspace);
  auto* finished = reinterpret_cast<unsigned*>(workspace);
  workspace += aligned(sizeof(unsigned) * shape.batch);
  auto* scores = reinterpret_cast<float*>(workspace);
  workspace += aligned(sizeof(float) * shape.batch * shape.tokens);
  auto* partial = reinterpret_cast<float*>(workspace);
  return {buffers.features, buffers.texts,  buffers.a,        buffers.c,    buffers.b,       buffers.out,
          buffers.indices,  buffers.readout, scores,          partial,      finished,        shape.tokens,
          shape.count,      shape.dim,       shape.classes,   shape.heads,  shape.confounders, shape.eps};
}

template <typename T, bool kSelect>
cudaError_t launch(const Shape& shape, const Buffers& buffers, cudaStream_t stream) {
  const Arguments arguments = bind(shape, buffers);
  const size_t shared = needed_shared(shape);
  cudaError_t error =
      cudaFuncSetAttribute(attend<T, kSelect>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.stream = stream;
  config.blockDim = dim3(kThreads);
  if (kSelect) {
    config.gridDim = dim3((shape.tokens + kWarps - 1) / kWarps, shape.batch);
    error = cudaLaunchKernelEx(&config, score_tokens<T>, arguments);
    config.attrs = &attribute;
    config.numAttrs = 1;
  } else {
    error = cudaMemsetAsync(arguments.finished, 0, sizeof(unsigned) * shape.batch, stream);
  }
  if (error != cudaSuccess) return error;
  config.gridDim = dim3(blocks(shape), shape.batch);
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, attend<T, kSelect>, arguments);
}

}  // namespace

const char* unsupported(const Shape& shape) {
  if (shape.batch < 1 || shape.batch > 65535) return "the batch is not from 1 to 65535";
  if (shape.tokens < 1 || shape.tokens > 4096) return "the tokens are not from 1 to 4096";
  if (shape.count < 1 || shape.count > shape.tokens) return "more tokens are asked for than there are";
  if (shape.dim % kChunk || shape.dim < kChunk || shape.dim > kMaxDim) return "d is no multiple of 32 up to 1024";
  if (shape.confounders < 1 || shape.confounders > 64 || shape.heads < 1) return "M is not from 1 to 64";
  if (columns(shape) % 8 || columns(shape) > 512) return "heads·M is no multiple of 8 up to 512";
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return "there is no GPU";
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return "the GPU does not say how much shared memory it has";
  return needed_shared(shape) + 1024 > static_cast<size_t>(most) ? "it needs more shared memory than the GPU has" : nullptr;
}

size_t workspace_bytes(const Shape& shape) {
  return aligned(sizeof(unsigned) * shape.batch) + aligned(sizeof(float) * shape.batch * shape.tokens) +
         aligned(sizeof(float) * shape.batch * blocks(shape) * shape.confounders);
}

cudaError_t select_intervene(const Shape& shape, Scalar type, const Buffers& buffers, cudaStream_t stream) {
  return type == Scalar::kHalf ? launch<__half, true>(shape, buffers, stream)
                               : launch<__nv_bfloat16, true>(shape, buffers, stream);
}

cudaError_t intervene(const Shape& shape, Scalar type, const Buffers& buffers, cudaStream_t stream) {
  return type == Scalar::kHalf ? launch<__half, false>(shape, buffers, stream)
                               : launch<__nv_bfloat16, false>(shape, buffers, stream);
}

}  // namespace mcdrl_rt
