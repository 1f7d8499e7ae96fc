// device.cuh for a CPU without a GPU: the kernels' own code, run one block at a time, each thread a coroutine.
//
// It shows that indices, layouts and the order of work are right, and nothing of speed. The tensor cores' product is
// done as the PTX manual lays out its registers. Threads run in turn between barriers, forwards or backwards
// (`backwards`): a missing barrier shows as a difference between the two.
#pragma once

#include <immintrin.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __host__
#define __global__ static
#define __shared__ static
#define __launch_bounds__(...)

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct Place {
  unsigned x = 0, y = 0, z = 0;
};

namespace mcdrl_rt {

constexpr int kWarp = 32;
using std::min;

struct alignas(16) Eight {
  uint32_t pair[4];
};

namespace emulation {

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Block {
  std::vector<ucontext_t> threads;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<bool> done;
  ucontext_t scheduler;
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<float> lanes;              // what a warp exchanges
  std::vector<uint32_t> left, right;     // 4 and 2 registers a lane
  std::vector<std::vector<std::pair<void*, const void*>>> copies;  // each thread's that are under way
  std::function<void()> body;
  int current = 0;
};

inline Block* block = nullptr;
inline std::vector<unsigned char> memory;
inline bool backwards = false;

inline void yield() { swapcontext(&block->threads[block->current], &block->scheduler); }

inline void wait(Barrier& barrier, int threads) {
  const int generation = barrier.generation;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  while (barrier.generation == generation) yield();
}

}  // namespace emulation

inline Place threadIdx, blockIdx, gridDim;

namespace emulation {

inline void enter() {
  block->body();
  block->done[block->current] = true;
  swapcontext(&block->threads[block->current], &block->scheduler);
}

// Run `body` once for every thread of a block.
inline void run(int threads, size_t shared, const std::function<void()>& body) {
  Block state;
  block = &state;
  memory.assign(shared + 64, 0xff);  // numbers that are none, where something is read before it is written
  state.body = body;
  state.threads.resize(threads);
  state.done.assign(threads, false);
  state.warps.resize(threads / kWarp);
  state.lanes.resize(threads);
  state.left.resize(4 * threads);
  state.right.resize(2 * threads);
  state.copies.resize(threads);
  for (int i = 0; i < threads; ++i) {
    state.stacks.emplace_back(new char[64 << 10]);
    getcontext(&state.threads[i]);
    state.threads[i].uc_stack = {state.stacks[i].get(), 0, 64 << 10};
    state.threads[i].uc_link = nullptr;
    makecontext(&state.threads[i], enter, 0);
  }
  for (int left = threads; left;)
    for (int step = 0; step < threads; ++step) {
      const int i = backwards ? threads - 1 - step : step;
      if (state.done[i]) continue;
      state.current = i;
      threadIdx.x = i;
      swapcontext(&state.scheduler, &state.threads[i]);
      left -= state.done[i];
    }
}

// Run `body` for every block of a grid.
inline void launch(Place grid, int threads, size_t shared, const std::function<void()>& body) {
  gridDim = grid;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run(threads, shared, body);
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::block->all, static_cast<int>(emulation::block->threads.size())); }
inline float __ldcg(const float* place) { return *place; }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(emulation::memory.data()) + 15) / 16 * 16);
}
inline void let_next_kernel_start() {}
inline void wait_for_last_kernel() {}

inline float to_float(__half value) { return _cvtsh_ss(value.bits); }
inline float to_float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline void store(__half* place, float value) { place->bits = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
inline void store(__nv_bfloat16* place, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  place->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <typename T>
float low(uint32_t pair, T) {
  return to_float(T{static_cast<uint16_t>(pair)});
}
template <typename T>
float high(uint32_t pair, T) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}
template <typename T>
uint32_t pack(float first, float second, T) {
  T one, other;
  store(&one, first);
  store(&other, second);
  return one.bits | static_cast<uint32_t>(other.bits) << 16;
}

inline Eight load(const void* place) {
  Eight eight;
  std::memcpy(&eight, place, 16);
  return eight;
}
inline Eight load_constant(const void* place) { return load(place); }

inline void warp_barrier() { emulation::wait(emulation::block->warps[threadIdx.x / kWarp], kWarp); }
inline void __syncwarp() { warp_barrier(); }

inline void load_shared(const float* place, float (&values)[4]) { std::memcpy(values, place, 16); }

// As late as may be: what does not wait finds nothing.
inline void copy_async(void* shared, const void* from) {
  emulation::block->copies[emulation::block->current].emplace_back(shared, from);
}
inline void wait_for_copies() {
  auto& copies = emulation::block->copies[emulation::block->current];
  for (const auto& [to, from] : copies) std::memcpy(to, from, 16);
  copies.clear();
}

// `combine` over `width` neighbouring lanes, as a butterfly of shuffles does it.
template <typename Combine>
float butterfly(float value, int width, Combine combine) {
  float* lanes = emulation::block->lanes.data() + threadIdx.x / kWarp * kWarp;
  lanes[threadIdx.x % kWarp] = value;
  warp_barrier();
  float values[kWarp], next[kWarp];
  std::copy(lanes, lanes + kWarp, values);
  for (int offset = width / 2; offset; offset /= 2) {
    for (int i = 0; i < kWarp; ++i) next[i] = combine(values[i], values[i ^ offset]);
    std::copy(next, next + kWarp, values);
  }
  warp_barrier();
  return values[threadIdx.x % kWarp];
}
inline float warp_sum(float value) { return butterfly(value, kWarp, std::plus<float>()); }
inline float quarter_sum(float value) { return butterfly(value, 4, std::plus<float>()); }
inline float eighth_sum(float value) { return butterfly(value, 8, std::plus<float>()); }
inline float eighth_max(float value) {
  return butterfly(value, 8, [](float one, float other) { return std::fmax(one, other); });
}
inline int warp_sum(int value) { return static_cast<int>(warp_sum(static_cast<float>(value))); }

// mma.m16n8k16, row.col: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
template <typename T>
void multiply(float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], T) {
  const int first = threadIdx.x / kWarp * kWarp, lane = threadIdx.x % kWarp;
  uint32_t* lefts = emulation::block->left.data() + 4 * first;
  uint32_t* rights = emulation::block->right.data() + 2 * first;
  std::copy(left, left + 4, lefts + 4 * lane);
  std::copy(right, right + 2, rights + 2 * lane);
  warp_barrier();
  const auto part = [](uint32_t pair, int odd) { return odd ? high(pair, T()) : low(pair, T()); };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2, upper = k / 8;
      const float a = part(lefts[4 * (row % 8 * 4 + owner) + row / 8 + 2 * upper], k % 2);
      const float b = part(rights[2 * (column * 4 + owner) + upper], k % 2);
      sum[i] += a * b;
    }
  }
  warp_barrier();
}

}  // namespace mcdrl_rt
