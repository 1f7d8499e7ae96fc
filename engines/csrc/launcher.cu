// Shapes, workspace and launches of the kernels.
#include "launcher.h"

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

size_t needed_shared(const Shape& shape) {
  return attend_bytes(heads_together(shape.heads, shape.confounders) * shape.confounders);
}

Arguments bind(const Shape& shape, const Buffers& buffers) {
  auto* workspace = static_cast<unsigned char*>(buffers.workspace);
  auto* scores = reinterpret_cast<float*>(workspace);
  auto* weights = reinterpret_cast<float*>(workspace + aligned(sizeof(float) * shape.batch * shape.tokens));
  return {buffers.features, buffers.texts, buffers.a,   buffers.c,    buffers.b,         buffers.shift, buffers.out,
          buffers.normed,   buffers.indices, buffers.readout, scores,  weights,           shape.tokens,  shape.count,
          shape.dim,        shape.classes, shape.heads, shape.confounders, shape.eps,     shape.norm_eps};
}

// Whether blocks of a kernel can be in place before the kernel before it has ended: from Hopper on.
bool starts_early() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}

// A launch, early where that can be.
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
  config.numAttrs = starts_early();
  return cudaLaunchKernelEx(&config, kernel, given);
}

template <typename T, bool kSelect>
cudaError_t launch(const Shape& shape, const Buffers& buffers, cudaStream_t stream) {
  const Arguments arguments = bind(shape, buffers);
  const unsigned blocks = (shape.tokens + kRows - 1) / kRows, batch = shape.batch;
  const int together = heads_together(shape.heads, shape.confounders);
  const dim3 groups(blocks, (shape.heads + together - 1) / together + (kSelect ? 1 : 0), batch);
  const dim3 tokens((shape.tokens + kTokens - 1) / kTokens, 1, batch);
  const size_t shared = needed_shared(shape);
  cudaError_t error = cudaSuccess;
  if (shared > kUsualShared)  // to the same for all, so that two threads do not take it from each other
    error = cudaFuncSetAttribute(attend<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(attend_bytes(kMostColumns)));
  if (error == cudaSuccess) error = launch_early(attend<T>, groups, kThreads, shared, stream, arguments);
  if (error != cudaSuccess) return error;
  return launch_early(update_for<T, kSelect>(shape.dim), tokens, kUpdateThreads, update_bytes(shape.dim, columns(shape)), stream, arguments);
}

template <typename T>
cudaError_t launch_norm(const NormArguments& arguments, cudaStream_t stream) {
  const dim3 blocks((arguments.rows + kNormWarps - 1) / kNormWarps);
  const auto kernel = arguments.dim <= kMaxDim ? norm_shift<T, kPieces> : norm_shift<T, 2 * kPieces>;
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
