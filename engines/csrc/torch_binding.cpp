// The CUDA implementations of mcdrl_rt's operators (schemas: mcdrl_rt/ops.py).
// A type or shape the kernels do not take goes to the reference, as if this library were not there.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <climits>
#include <optional>
#include <tuple>

#include "launcher.h"

namespace {

using at::Tensor;
using mcdrl_rt::Buffers;
using mcdrl_rt::Scalar;
using mcdrl_rt::Shape;

bool is_taken(const Shape& shape, std::initializer_list<Tensor> inputs) {
  const auto type = inputs.begin()->scalar_type();
  if (type != at::kHalf && type != at::kBFloat16) return false;
  for (const Tensor& input : inputs)
    if (input.scalar_type() != type || input.device() != inputs.begin()->device()) return false;
  return mcdrl_rt::unsupported(shape) == nullptr;
}

Scalar scalar(const Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf ? Scalar::kHalf : Scalar::kBFloat16;
}

bool has(const Tensor& tensor, at::IntArrayRef sizes) { return tensor.sizes() == sizes; }

// Contiguous and at a multiple of 16 bytes, which a view need not be.
Tensor plain(const Tensor& tensor, at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  const Tensor whole = tensor.contiguous(format);
  return reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % 16 ? whole.clone() : whole;
}

template <typename... Values>
torch::jit::Stack by_reference(const char* name, Values&&... values) {
  torch::jit::Stack stack = {c10::IValue(std::forward<Values>(values))...};
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  op.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, stack);
  return stack;
}

// What the kernels give; `normed` and `indices` only where they were asked for.
struct Results {
  Tensor out, normed, indices, readout;
};

// The operators' common part; nothing where the kernels do not take the types or the shape.
std::optional<Results> run(const Tensor& features, const std::optional<Tensor>& texts, const Tensor& a, const Tensor& c,
                           const Tensor& b, const std::optional<Tensor>& shift, int64_t count, int64_t heads, double eps,
                           double norm_eps) {
  const auto size = [](int64_t value) { return static_cast<int>(value); };
  const int64_t dim = features.size(2), columns = a.size(0);
  // the reference broadcasts, or says what is wrong
  const bool fits = heads > 0 && columns % heads == 0 && has(a, {columns, dim}) && has(c, {columns}) &&
                    has(b, {dim, columns}) && (!texts || has(*texts, {texts->size(0), dim})) &&
                    (!shift || has(*shift, {dim}));
  if (!fits) return std::nullopt;
  const Shape shape = {size(features.size(0)), size(features.size(1)),  size(count),
                       size(features.size(2)), texts ? size(texts->size(0)) : 0, size(heads),
                       size(columns / heads),  static_cast<float>(eps),  static_cast<float>(norm_eps)};
  if (!is_taken(shape, {features, texts.value_or(features), a, c, b, shift.value_or(features)})) return std::nullopt;
  const Tensor inputs[] = {plain(features), texts ? plain(*texts) : Tensor(), plain(a), plain(c), plain(b),
                           shift ? plain(*shift) : Tensor()};
  const Tensor out = at::empty({shape.batch, count, shape.dim}, features.options());
  const Tensor normed = shift ? at::empty_like(out) : Tensor();
  const Tensor indices = texts ? at::empty({shape.batch, count}, features.options().dtype(at::kLong)) : Tensor();
  const Tensor readout = at::empty({shape.batch, count, shape.confounders}, features.options().dtype(at::kFloat));
  const auto bytes = static_cast<int64_t>(mcdrl_rt::workspace_bytes(shape));
  const Tensor workspace = at::empty({bytes}, features.options().dtype(at::kByte));
  const Buffers buffers = {inputs[0].const_data_ptr(),
                           texts ? inputs[1].const_data_ptr() : nullptr,
                           inputs[2].const_data_ptr(),
                           inputs[3].const_data_ptr(),
                           inputs[4].const_data_ptr(),
                           shift ? inputs[5].const_data_ptr() : nullptr,
                           out.data_ptr(),
                           shift ? normed.data_ptr() : nullptr,
                           texts ? indices.data_ptr<int64_t>() : nullptr,
                           readout.data_ptr<float>(),
                           workspace.data_ptr()};
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(texts ? mcdrl_rt::select_intervene(shape, scalar(features), buffers, stream)
                       : mcdrl_rt::intervene(shape, scalar(features), buffers, stream));
  return Results{out, normed, indices, readout};
}

std::tuple<Tensor, Tensor> intervene(const Tensor& tokens, const Tensor& a, const Tensor& c, const Tensor& b,
                                     int64_t heads, double eps) {
  const c10::cuda::CUDAGuard guard(tokens.device());
  if (const auto done = run(tokens, {}, a, c, b, {}, tokens.size(1), heads, eps, 0)) return {done->out, done->readout};
  const auto stack = by_reference("mcdrl_rt::intervene", tokens, a, c, b, heads, eps);
  return {stack[0].toTensor(), stack[1].toTensor()};
}

std::tuple<Tensor, Tensor, Tensor> select_intervene(const Tensor& features, const Tensor& texts, const Tensor& a,
                                                    const Tensor& c, const Tensor& b, int64_t count, int64_t heads,
                                                    double eps) {
  const c10::cuda::CUDAGuard guard(features.device());
  if (const auto done = run(features, texts, a, c, b, {}, count, heads, eps, 0))
    return {done->out, done->indices, done->readout};
  const auto stack = by_reference("mcdrl_rt::select_intervene", features, texts, a, c, b, count, heads, eps);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor()};
}

std::tuple<Tensor, Tensor, Tensor> intervene_norm(const Tensor& tokens, const Tensor& a, const Tensor& c, const Tensor& b,
                                                  const Tensor& shift, int64_t heads, double eps, double norm_eps) {
  const c10::cuda::CUDAGuard guard(tokens.device());
  if (const auto done = run(tokens, {}, a, c, b, shift, tokens.size(1), heads, eps, norm_eps))
    return {done->normed, done->out, done->readout};
  const auto stack = by_reference("mcdrl_rt::intervene_norm", tokens, a, c, b, shift, heads, eps, norm_eps);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> select_intervene_norm(const Tensor& features, const Tensor& texts,
                                                                 const Tensor& a, const Tensor& c, const Tensor& b,
                                                                 const Tensor& shift, int64_t count, int64_t heads,
                                                                 double eps, double norm_eps) {
  const c10::cuda::CUDAGuard guard(features.device());
  if (const auto done = run(features, texts, a, c, b, shift, count, heads, eps, norm_eps))
    return {done->normed, done->out, done->indices, done->readout};
  const auto stack =
      by_reference("mcdrl_rt::select_intervene_norm", features, texts, a, c, b, shift, count, heads, eps, norm_eps);
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor(), stack[3].toTensor()};
}

std::tuple<Tensor, Tensor> norm_shift(const Tensor& x, const std::optional<Tensor>& weight,
                                      const std::optional<Tensor>& bias, const Tensor& shift, double eps) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int dim = static_cast<int>(x.size(-1));
  const int64_t rows = dim ? x.numel() / dim : 0;
  const auto type = x.scalar_type();
  bool taken = (type == at::kHalf || type == at::kBFloat16) && mcdrl_rt::norm_takes(dim) && rows > 0 && rows < INT_MAX;
  for (const Tensor& input : {weight.value_or(shift), bias.value_or(shift), shift})
    taken = taken && input.scalar_type() == type && input.device() == x.device() && has(input, {dim});
  if (!taken) {
    const auto stack = by_reference("mcdrl_rt::norm_shift", x, weight, bias, shift, eps);
    return {stack[0].toTensor(), stack[1].toTensor()};
  }
  const Tensor inputs[] = {plain(x), plain(weight.value_or(shift)), plain(bias.value_or(shift)), plain(shift)};
  const Tensor normed = at::empty(x.sizes(), x.options()), shifted = at::empty(x.sizes(), x.options());
  const mcdrl_rt::NormBuffers buffers = {inputs[0].const_data_ptr(),
                                         weight ? inputs[1].const_data_ptr() : nullptr,
                                         bias ? inputs[2].const_data_ptr() : nullptr,
                                         inputs[3].const_data_ptr(),
                                         normed.data_ptr(),
                                         shifted.data_ptr()};
  C10_CUDA_CHECK(mcdrl_rt::norm_shift(static_cast<int>(rows), dim, static_cast<float>(eps), scalar(x), buffers,
                                      c10::cuda::getCurrentCUDAStream()));
  return {normed, shifted};
}

Tensor lift(const Tensor& coarse, const Tensor& gate, const Tensor& sharp, int64_t height, int64_t width) {
  const c10::cuda::CUDAGuard guard(coarse.device());
  const auto size = [](int64_t value) { return static_cast<int>(value); };
  const mcdrl_rt::LiftShape shape = {size(coarse.size(0)), size(coarse.size(2)), size(coarse.size(3)),
                                     size(coarse.size(1)), size(sharp.size(2)),  size(sharp.size(3)),
                                     size(sharp.size(1)),  size(height),         size(width)};
  const auto type = coarse.scalar_type();
  bool taken = (type == at::kHalf || type == at::kBFloat16) && mcdrl_rt::lift_takes(shape) &&
               has(gate, {coarse.size(0), sharp.size(1), coarse.size(2), coarse.size(3)}) &&
               sharp.size(0) == coarse.size(0);
  for (const Tensor& input : {gate, sharp})
    taken = taken && input.scalar_type() == type && input.device() == coarse.device();
  if (!taken) return by_reference("mcdrl_rt::lift", coarse, gate, sharp, height, width)[0].toTensor();
  const auto last = at::MemoryFormat::ChannelsLast;
  const Tensor inputs[] = {plain(coarse, last), plain(gate, last), plain(sharp, last)};
  const Tensor out = at::empty({shape.batch, coarse.size(1) + sharp.size(1), height, width}, coarse.options(), last);
  C10_CUDA_CHECK(mcdrl_rt::lift(shape, scalar(coarse), inputs[0].const_data_ptr(), inputs[1].const_data_ptr(),
                                inputs[2].const_data_ptr(), out.data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(mcdrl_rt, CUDA, library) {
  library.impl("intervene", &intervene);
  library.impl("select_intervene", &select_intervene);
  library.impl("intervene_norm", &intervene_norm);
  library.impl("select_intervene_norm", &select_intervene_norm);
  library.impl("norm_shift", &norm_shift);
  library.impl("lift", &lift);
}
