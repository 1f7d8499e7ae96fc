// The kernels on a CPU, behind one C function; tests/test_kernels.py compiles and calls it.
#define MCDRL_EMULATE
#include "kernels.cuh"

using namespace mcdrl_rt;

namespace {

template <typename T>
void run(const Arguments& arguments, int batch, bool select) {
  const unsigned blocks = (arguments.tokens + kRows - 1) / kRows, height = batch;
  const unsigned warps = (arguments.tokens + kWarps - 1) / kWarps;
  const size_t shared =
      shared_bytes(arguments.dim, arguments.heads * arguments.confounders, select ? arguments.tokens : 0);
  if (select) {
    emulation::launch({warps, height}, kThreads, 0, [&] { score_tokens<T>(arguments); });
    emulation::launch({blocks, height}, kThreads, shared, [&] { attend<T, true>(arguments); });
  } else {
    std::fill(arguments.finished, arguments.finished + batch, 0u);
    emulation::launch({blocks, height}, kThreads, shared, [&] { attend<T, false>(arguments); });
  }
}

}  // namespace

extern "C" void mcdrl_emulate(int bfloat16, int backwards, int batch, int tokens, int count, int dim, int classes,
                              int heads, int confounders, float eps, const void* features, const void* texts,
                              const void* a, const void* c, const void* b, void* out, int64_t* indices,
                              float* readout) {
  emulation::backwards = backwards;
  std::vector<float> scores(static_cast<size_t>(batch) * tokens, NAN);
  std::vector<float> partial(static_cast<size_t>(batch) * ((tokens + kRows - 1) / kRows) * confounders, NAN);
  std::vector<unsigned> finished(batch, 12345u);
  const Arguments arguments = {features, texts,          a,      c,     b,   out,     indices, readout,     scores.data(),
                               partial.data(), finished.data(), tokens, count, dim, classes, heads,   confounders, eps};
  if (bfloat16)
    run<__nv_bfloat16>(arguments, batch, classes > 0);
  else
    run<__half>(arguments, batch, classes > 0);
}
