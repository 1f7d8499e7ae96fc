// Shapes, workspace and launches of the kernels.
#include "launcher.h"

#include <algorithm>

#include "kernels.cuh"
#include "lift.cuh"
#include "norm.cuh"

namespace mcdrl_rt {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kUsualShared = 48 << 10;
constexpr int kMostColumns = 512;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int columns(const Shape& shape) { return shape.heads * shape.confounders; }

size_t attend_shared(const Shape& shape) {
  return attend_bytes(heads_together(shape.heads, shape.confounders) * shape.confounders);
}

Arguments bind(const Shape& shape, const Buffers& buffers) {
  auto* workspace = static_cast<unsigned char*>(buffers.workspace);
  auto* scores = reinterpret_cast<float*>(workspace);
  auto* weights = reinterpret_cast<float*>(workspace + aligned(sizeof(float) * shape.batch * shape.tokens));
  return {buffers.features, buffers.texts, buffers.a,   buffers.c,    buffers.b,         buffers.shift, buffers.out,
          buffers.normed,   buffers.indices, buffers.readout, scores,  weights,           shape.batch,   shape.tokens,
          shape.count,      shape.dim,     shape.classes, shape.heads, shape.confounders, shape.eps,     shape.norm_eps};
}

// What the GPU at hand says of itself; 0 where it says nothing.
int ask(cudaDeviceAttr what) {
  int device = 0, value = 0;
  return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, what, device) == cudaSuccess ? value : 0;
}

// A launch, early where that can be: from Hopper on, blocks are in place before the kernel before has ended.
template <typename Kernel, typename Given>
cudaError_t launch_early(Kernel kernel, dim3 grid, int threads, size_t shared, cudaStream_t stream, const Given& given) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = ask(cudaDevAttrComputeCapabilityMajor) >= 9;
  return cudaLaunchKernelEx(&config, kernel, given);
}

// A kernel that may ask for more shared memory than usual: to the same for all calls, so that two threads do not take it
// from each other.
template <typename Kernel>
cudaError_t allow_shared(Kernel kernel, size_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <typename T, bool kSelect>
cudaError_t launch(const Shape& shape, const Buffers& buffers, cudaStream_t stream) {
  const Arguments arguments = bind(shape, buffers);
  const unsigned blocks = (shape.tokens + kRows - 1) / kRows, batch = shape.batch;
  const unsigned multiprocessors = std::max(1, ask(cudaDevAttrMultiProcessorCount));
  const int together = heads_together(shape.heads, shape.confounders);
  const dim3 groups(blocks, (shape.heads + together - 1) / together + (kSelect ? 1 : 0), batch);
  const dim3 tokens(std::min(batch * ((shape.tokens + kTokens - 1) / kTokens), multiprocessors));  // a block each
  const size_t shared = attend_shared(shape);
  const auto first = attend_for<T>(shape.dim);
  cudaError_t error = shared > kUsualShared ? allow_shared(first, attend_bytes(kMostColumns)) : cudaSuccess;
  if (error == cudaSuccess) error = launch_early(first, groups, kThreads, shared, stream, arguments);
  if (error != cudaSuccess) return error;
  const auto second = update_for<T, kSelect>(shape.dim);
  const size_t own = update_bytes(shape.dim, columns(shape));
  if (own > kUsualShared) error = allow_shared(second, update_bytes(kMaxDim, kMostColumns));
  return error == cudaSuccess ? launch_early(second, tokens, kUpdateThreads, own, stream, arguments) : error;
}

template <typename T>
cudaError_t launch_norm(const NormArguments& arguments, cudaStream_t stream) {
  const dim3 blocks((arguments.rows + kNormWarps - 1) / kNormWarps);
  const auto kernel = arguments.dim <= kMaxDim ? norm_shift<T, kMaxDim / kPart> : norm_shift<T, 2 * kMaxDim / kPart>;
  return launch_early(kernel, blocks, kNormWarps * kWarp, 0, stream, arguments);
}

}  // namespace

const char* unsupported(const Shape& shape) {
  if (shape.batch < 1 || shape.batch > 65535) return "the batch is not from 1 to 65535";
  if (shape.tokens < 1 || shape.tokens > 4096) return "the tokens are not from 1 to 4096";
  if (shape.count < 1 || shape.count > shape.tokens) return "more tokens are asked for than there are";
  if (shape.dim % kChunk || shape.dim < kChunk || shape.dim > kMaxDim) return "d is no multiple of 32 up to 1024";
  if (shape.confounders < 1 || shape.confounders > 64 || shape.heads < 1) return "M is not from 1 to 64";
  if (columns(shape) % 8 || columns(shape) > kMostColumns) return "heads·M is no multiple of 8 up to 512";
  const auto most = static_cast<size_t>(ask(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  const size_t needed = std::max(attend_shared(shape), update_bytes(shape.dim, columns(shape)));
  return needed > most ? "it needs more shared memory than the GPU has, or there is no GPU" : nullptr;
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

bool lift_takes(const LiftShape& shape) {
  const bool whole = shape.coarse_channels % 8 == 0 && shape.sharp_channels % 8 == 0;
  const bool some = shape.batch > 0 && shape.coarse_channels > 0 && shape.sharp_channels > 0 && shape.coarse_height > 0 &&
                    shape.coarse_width > 0 && shape.sharp_height > 0 && shape.sharp_width > 0 && shape.width > 0;
  return whole && some && shape.batch <= 65535 && shape.height > 0 && shape.height <= 65535;
}

cudaError_t lift(const LiftShape& shape, Scalar type, const void* coarse, const void* gate, const void* sharp, void* out,
                 cudaStream_t stream) {
  const LiftArguments arguments = {coarse, gate, sharp, out, shape.coarse_height, shape.coarse_width, shape.coarse_channels,
                                   shape.sharp_height, shape.sharp_width, shape.sharp_channels, shape.height, shape.width};
  const int threads = shape.width * ((shape.coarse_channels + shape.sharp_channels) / 8);
  const dim3 grid((threads + kLiftThreads - 1) / kLiftThreads, shape.height, shape.batch);
  return launch_early(type == Scalar::kHalf ? lift<__half> : lift<__nv_bfloat16>, grid, kLiftThreads, 0, stream, arguments);
}

}  // namespace mcdrl_rt
