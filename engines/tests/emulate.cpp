// The kernels on a CPU, behind one C function; tests/test_kernels.py compiles and calls it.
#define MCDRL_EMULATE
#include "kernels.cuh"
#include "lift.cuh"
#include "norm.cuh"

using namespace mcdrl_rt;

namespace {

template <typename T>
void run(const Arguments& arguments, int batch, bool select) {
  const unsigned blocks = (arguments.tokens + kRows - 1) / kRows, depth = batch;
  const int heads = arguments.heads, together = heads_together(heads, arguments.confounders);
  const unsigned groups = (heads + together - 1) / together + select, multiprocessors = 5;  // few: a block has several groups
  const unsigned tokens = std::min(depth * ((arguments.tokens + kTokens - 1) / kTokens), multiprocessors);
  const size_t shared = attend_bytes(together * arguments.confounders);
  const auto first = attend_for<T>(arguments.dim);
  emulation::launch({blocks, groups, depth}, kThreads, shared, [&] { first(arguments); });
  const auto next = select ? update_for<T, true>(arguments.dim) : update_for<T, false>(arguments.dim);
  const size_t own = update_bytes(arguments.dim, heads * arguments.confounders);
  emulation::launch({tokens, 1, 1}, kUpdateThreads, own, [&] { next(arguments); });
}

}  // namespace

extern "C" void mcdrl_emulate(int bfloat16, int backwards, int batch, int tokens, int count, int dim, int classes,
                              int heads, int confounders, float eps, const void* features, const void* texts,
                              const void* a, const void* c, const void* b, const void* shift, void* out, void* normed,
                              int64_t* indices, float* readout) {
  emulation::backwards = backwards;
  std::vector<float> scores(static_cast<size_t>(batch) * tokens, NAN);
  std::vector<float> weights(static_cast<size_t>(batch) * tokens * heads * confounders, NAN);
  const Arguments arguments = {features, texts,          a,      c,     b,   shift,   out,   normed,      indices, readout,
                               scores.data(), weights.data(), batch, tokens, count, dim, classes, heads, confounders, eps, eps};
  if (bfloat16)
    run<__nv_bfloat16>(arguments, batch, classes > 0);
  else
    run<__half>(arguments, batch, classes > 0);
}

extern "C" void mcdrl_emulate_norm(int rows, int dim, float eps, const void* x, const void* weight, const void* bias,
                                   const void* shift, void* normed, void* shifted) {
  const NormArguments arguments = {x, weight, bias, shift, normed, shifted, rows, dim, eps};
  const unsigned blocks = (rows + kNormWarps - 1) / kNormWarps;
  emulation::launch({blocks, 1, 1}, kNormWarps * kWarp, 0, [&] {
    dim <= kMaxDim ? norm_shift<__half, 4>(arguments) : norm_shift<__half, 8>(arguments);
  });
}

extern "C" void mcdrl_emulate_lift(const int* sizes, const void* coarse, const void* gate, const void* sharp, void* out) {
  const LiftArguments arguments = {coarse,   gate,     sharp,    out,      sizes[1], sizes[2],
                                   sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8]};
  const int threads = arguments.width * ((arguments.coarse_channels + arguments.sharp_channels) / 8);
  const Place grid = {static_cast<unsigned>((threads + kLiftThreads - 1) / kLiftThreads),
                      static_cast<unsigned>(arguments.height), static_cast<unsigned>(sizes[0])};
  emulation::launch(grid, kLiftThreads, 0, [&] { lift<__half>(arguments); });
}
