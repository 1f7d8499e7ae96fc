// The few primitives the kernels stand on: vector loads, warp sums, the tensor cores' 16×8×16 product.
// engines/tests/emulation.h has the same for a CPU, so that the kernels can be tested without a GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace mcdrl_rt {

constexpr int kWarp = 32;

// 8 numbers of 2 bytes, loaded and stored at once.
struct alignas(16) Eight {
  uint32_t pair[4];
};

__device__ inline float low(uint32_t pair, __half) { return __low2float(*reinterpret_cast<const __half2*>(&pair)); }
__device__ inline float high(uint32_t pair, __half) { return __high2float(*reinterpret_cast<const __half2*>(&pair)); }
__device__ inline float low(uint32_t pair, __nv_bfloat16) { return __uint_as_float(pair << 16); }
__device__ inline float high(uint32_t pair, __nv_bfloat16) { return __uint_as_float(pair & 0xffff0000u); }

__device__ inline uint32_t pack(float first, float second, __half) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline uint32_t pack(float first, float second, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline void store(__half* place, float value) { *place = __float2half_rn(value); }
__device__ inline void store(__nv_bfloat16* place, float value) { *place = __float2bfloat16_rn(value); }

__device__ inline Eight load(const void* place) {
  const uint4 value = *reinterpret_cast<const uint4*>(place);
  return {{value.x, value.y, value.z, value.w}};
}
// Of what no kernel writes: such a load may be moved before a wait.
__device__ inline Eight load_constant(const void* place) {
  const uint4 value = __ldg(reinterpret_cast<const uint4*>(place));
  return {{value.x, value.y, value.z, value.w}};
}

// 4 numbers in shared memory, at a multiple of 16 bytes.
__device__ inline void load_shared(const float* place, float (&values)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(place);
  values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
}

// 16 bytes into shared memory. There for a thread that has waited for its copies, and for others at a barrier after that.
__device__ inline void copy_async(void* shared, const void* from) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Over 4 or 8 neighbouring lanes, all of which get it.
__device__ inline float quarter_sum(float value) {
  for (int offset = 2; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
__device__ inline float eighth_sum(float value) {
  for (int offset = 4; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
__device__ inline float eighth_max(float value) {
  for (int offset = 4; offset; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

__device__ inline float warp_sum(float value) {
  for (int offset = kWarp / 2; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

__device__ inline int warp_sum(int value) { return __reduce_add_sync(0xffffffffu, value); }

// sum += left (16×16, rows) · right (16×8, columns), in the registers' layout of mma.m16n8k16.
__device__ inline void multiply(float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
__device__ inline void multiply(float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

// What a launch asked for as dynamic shared memory.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Programmatic dependent launch (Hopper on): a kernel's blocks are in place before the kernel before it has ended. Each of
// ours waits for that before it reads or writes anything that may be another's; one that lets the next start does so
// after its own wait, so the next finds whatever was there before both.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ inline void wait_for_last_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

}  // namespace mcdrl_rt
