// Shapes, workspace and launches of the kernels.
#include "launcher.h"

#include "kernels.cuh"
#include "norm.cuh"

namespace mcdrl_rt {
namespace {

constexpr size_t kAlign = 256;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int columns(const Shape& shape) { return shape.heads * shape.confounders; }

size_t needed_shared(const Shape& shape) {
  return attend_bytes(shape.dim, heads_together(shape.heads, shape.confounders) * shape.confounders);
}

Arguments bind(const Shape& shape, const Buffers& buffers) {
  auto* workspace = static_cast<unsigned char*>(buffers.workspace);
  auto* scores = reinterpret_cast<float*>(workspace);
  auto* weights = reinterpret_cast<float*>(workspace + aligned(sizeof(float) * shape.batch * shape.tokens));
  return {buffers.features, buffers.texts,   buffers.a, buffers.c,    buffers.b,   buffers.out,
          buffers.indices,  buffers.readout, scores,    weights,      shape.tokens, shape.count,
          shape.dim,        shape.classes,   shape.heads, shape.confounders, shape.eps};
}

template <typename T, bool kSelect>
cudaError_t launch(const Shape& shape, const Buffers& buffers, cudaStream_t stream) {
  const Arguments arguments = bind(shape, buffers);
  const unsigned blocks = (shape.tokens + kRows - 1) / kRows, batch = shape.batch;
  const int together = heads_together(shape.heads, shape.confounders);
  cudaLaunchConfig_t config = {};
  config.stream = stream;
  config.gridDim = dim3(blocks, (shape.heads + together - 1) / together + (kSelect ? 1 : 0), batch);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = needed_shared(shape);
  cudaError_t error = cudaFuncSetAttribute(attend<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(config.dynamicSmemBytes));
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, attend<T>, arguments);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  config.gridDim = dim3(blocks, (shape.dim + kSlice - 1) / kSlice + 1, batch);
  config.blockDim = dim3(kUpdateWarps * kWarp);
  config.dynamicSmemBytes = update_bytes(columns(shape));
  return cudaLaunchKernelEx(&config, update<T, kSelect>, arguments);
}

template <typename T>
cudaError_t launch_norm(const NormArguments& arguments, cudaStream_t stream) {
  const dim3 blocks((arguments.rows + kNormWarps - 1) / kNormWarps), threads(kNormWarps * kWarp);
  if (arguments.dim <= kMaxDim)
    norm_shift<T, kPieces><<<blocks, threads, 0, stream>>>(arguments);
  else
    norm_shift<T, 2 * kPieces><<<blocks, threads, 0, stream>>>(arguments);
  return cudaGetLastError();
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
  return needed_shared(shape) > static_cast<size_t>(most) ? "it needs more shared memory than the GPU has" : nullptr;
}

size_t workspace_bytes(const Shape& shape) {
  const size_t tokens = static_cast<size_t>(shape.batch) * shape.tokens;
  return aligned(sizeof(float) * tokens) + aligned(sizeof(float) * tokens * columns(shape));
}

cudaError_t select_intervene(const Shape& shape, Scalar type, const Buffers& buffers, cudaStream_t stream) {
  return type == Scalar::kHalf ? launch<__half, true>(shape, buffers, stream)
                               : launch<__nv_bfloat16, true>(shape, buffers, stream);
}

cudaError_t intervene(const Shape& shape, Scalar type, const Buffers& buffers, cudaStream_t stream) {
  return type == Scalar::kHalf ? launch<__half, false>(shape, buffers, stream)
                               : launch<__nv_bfloat16, false>(shape, buffers, stream);
}

bool norm_takes(int dim) { return dim > 0 && dim % 8 == 0 && dim <= 2 * kMaxDim; }

cudaError_t norm_shift(int rows, int dim, float eps, Scalar type, const NormBuffers& buffers, cudaStream_t stream) {
  const NormArguments arguments = {buffers.x,       buffers.weight, buffers.bias, buffers.shift, buffers.normed,
                                   buffers.shifted, rows,           dim,          eps};
  return type == Scalar::kHalf ? launch_norm<__half>(arguments, stream) : launch_norm<__nv_bfloat16>(arguments, stream);
}

}  // namespace mcdrl_rt
