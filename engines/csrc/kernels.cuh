// The fused operator in two kernels.
//
// score_tokens: one warp a token, its best cosine with the class texts.
// attend: one block for 16 tokens. It ranks them by counting better scores, which needs no sort, gives ties to the
// lower index and says at once where in the output a token goes; normalises the chosen ones into shared memory; and
// does the two thin products on the tensor cores, with a and b read from L2 once by every block. All sums are taken in
// float32 and in a fixed order, so a result does not change from run to run.
#pragma once

#ifdef MCDRL_EMULATE
#include "emulation.h"
#else
#include "device.cuh"
#endif

#include <cstddef>
#include <cstdint>

namespace mcdrl_rt {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 16;     // tokens of a block: the rows of a tensor core's product
constexpr int kColumns = 64;  // columns of norm(F)·aᵀ summed over warps at a time
constexpr int kChunk = 32;    // of what a product sums over: 16 bytes for each of 4 lanes
constexpr int kMaxDim = 1024;
constexpr int kPieces = kMaxDim / (kWarp * 8);  // 16-byte loads of a lane for a token

struct Arguments {
  const void* features;
  const void* texts;
  const void* a;
  const void* c;
  const void* b;
  void* out;
  int64_t* indices;
  float* readout;
  float* scores;       // (B, T)
  float* partial;      // (B, blocks, M)
  unsigned* finished;  // (B,), blocks that are done
  int tokens, count, dim, classes, heads, confounders;
  float eps;
};

// Numbers in a row of shared memory: 8 lanes that read 16 bytes of two rows then meet every bank once.
__host__ __device__ inline int padded(int columns) {
  columns = (columns + kChunk - 1) / kChunk * kChunk;
  return columns % 64 ? columns : columns + 32;
}

__host__ __device__ inline size_t shared_bytes(int dim, int columns, int tokens) {
  return sizeof(uint16_t) * kRows * (padded(dim) + padded(columns)) +
         sizeof(float) * (kWarps * kRows * (kColumns + 4) + kRows * columns + tokens);
}

template <typename T>
__device__ inline void load_row(const T* row, int dim, int lane, float (&values)[kPieces][8]) {
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = (i * kWarp + lane) * 8;
    const bool inside = column < dim;
    const Eight eight = inside ? load_constant(row + column) : Eight{{0, 0, 0, 0}};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      values[i][2 * j] = low(eight.pair[j], T());
      values[i][2 * j + 1] = high(eight.pair[j], T());
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) score_tokens(Arguments arguments) {
  let_next_kernel_start();
  const int lane = threadIdx.x % kWarp, batch = blockIdx.y, dim = arguments.dim;
  const int token = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (blockIdx.x == 0 && threadIdx.x == 0) arguments.finished[batch] = 0;
  if (token >= arguments.tokens) return;
  const T* features = static_cast<const T*>(arguments.features);
  float x[kPieces][8], e[kPieces][8];
  load_row(features + (static_cast<size_t>(batch) * arguments.tokens + token) * dim, dim, lane, x);
  float square = 0;
  for (int i = 0; i < kPieces; ++i)
    for (int j = 0; j < 8; ++j) square += x[i][j] * x[i][j];
  const float norm = fmaxf(sqrtf(warp_sum(square)), 1e-12f);
  float best = -INFINITY;
  for (int k = 0; k < arguments.classes; ++k) {
    load_row(static_cast<const T*>(arguments.texts) + static_cast<size_t>(k) * dim, dim, lane, e);
    float dot = 0, size = 0;
    for (int i = 0; i < kPieces; ++i)
      for (int j = 0; j < 8; ++j) dot += x[i][j] * e[i][j], size += e[i][j] * e[i][j];
    const float cosine = warp_sum(dot) / norm / fmaxf(sqrtf(warp_sum(size)), 1e-12f);
    best = cosine > best || cosine != cosine ? cosine : best;
  }
  // a score that is no number comes first, as torch sorts it
  if (lane == 0) arguments.scores[static_cast<size_t>(batch) * arguments.tokens + token] = best == best ? best : INFINITY;
}

// A block's rows: which tokens they are, and where they go.
struct Rows {
  int token[kRows], place[kRows], count;
};

__device__ inline void take_in_order(const Arguments& arguments, Rows& rows) {
  const int first = blockIdx.x * kRows;
  if (threadIdx.x < kRows) rows.token[threadIdx.x] = rows.place[threadIdx.x] = first + threadIdx.x;
  if (threadIdx.x == 0) rows.count = min(kRows, arguments.tokens - first);
  __syncthreads();
}

// Rank 16 tokens among all by their scores, and keep those among the first N.
__device__ inline void take_best(const Arguments& arguments, float* scores, int* rank, Rows& rows) {
  const int first = blockIdx.x * kRows, batch = blockIdx.y, lane = threadIdx.x % kWarp, tokens = arguments.tokens;
  const float* all = arguments.scores + static_cast<size_t>(batch) * tokens;
  for (int t = threadIdx.x; t < tokens; t += kThreads) scores[t] = all[t];
  __syncthreads();
  for (int r = threadIdx.x / kWarp; r < kRows; r += kWarps) {
    const int token = first + r;
    int before = 0;
    if (token < tokens) {
      const float own = scores[token];
      for (int t = lane; t < tokens; t += kWarp) before += scores[t] > own || (scores[t] == own && t < token);
    }
    before = warp_sum(before);
    if (lane == 0) rank[r] = token < tokens ? before : arguments.count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int kept = 0;
    for (int r = 0; r < kRows; ++r) {
      if (rank[r] >= arguments.count) continue;
      rows.token[kept] = first + r;
      rows.place[kept++] = rank[r];
      arguments.indices[static_cast<size_t>(batch) * arguments.count + rank[r]] = first + r;
    }
    rows.count = kept;
  }
  __syncthreads();
}

// LayerNorm without its affine part of every row, rounded once into shared memory; absent rows are zero.
template <typename T>
__device__ inline void normalise(const Arguments& arguments, const T* features, const Rows& rows, T* normed) {
  const int lane = threadIdx.x % kWarp, dim = arguments.dim, stride = padded(dim);
  for (int r = threadIdx.x / kWarp; r < kRows; r += kWarps) {
    float x[kPieces][8];
    const bool present = r < rows.count;
    if (present) load_row(features + static_cast<size_t>(rows.token[r]) * dim, dim, lane, x);
    float sum = 0, square = 0;
    for (int i = 0; i < kPieces && present; ++i)
      for (int j = 0; j < 8; ++j) sum += x[i][j];
    const float mean = warp_sum(sum) / dim;
    for (int i = 0; i < kPieces && present; ++i)
      for (int j = 0; j < 8; ++j)
        if ((i * kWarp + lane) * 8 < dim) square += (x[i][j] - mean) * (x[i][j] - mean);
    const float scale = rsqrtf(warp_sum(square) / dim + arguments.eps);
    for (int i = 0; i < kPieces; ++i) {
      const int column = (i * kWarp + lane) * 8;
      if (column >= dim) continue;
      Eight eight = {{0, 0, 0, 0}};
      for (int j = 0; j < 4 && present; ++j)
        eight.pair[j] = pack((x[i][2 * j] - mean) * scale, (x[i][2 * j + 1] - mean) * scale, T());
      *reinterpret_cast<Eight*>(normed + r * stride + column) = eight;
    }
  }
  __syncthreads();
}

// One lane's share of 16 rows × 32 columns in shared memory, and the product with a share of 8 rows of a matrix.
// A lane holds 8 neighbouring columns; which of the product's 16 slots they fill is the same on both sides, so the sum
// is over the same pairs.
struct Share {
  Eight upper, lower;  // rows lane / 4 and lane / 4 + 8
};

template <typename T>
__device__ inline Share load_share(const T* matrix, int stride, int column, int lane) {
  const T* place = matrix + lane / 4 * stride + column + lane % 4 * 8;
  return {*reinterpret_cast<const Eight*>(place), *reinterpret_cast<const Eight*>(place + 8 * stride)};
}

template <typename T>
__device__ inline void multiply(float (&sum)[4], const Share& left, const Eight& right) {
  for (int half = 0; half < 2; ++half) {
    const int i = 2 * half;
    const uint32_t rows[4] = {left.upper.pair[i], left.lower.pair[i], left.upper.pair[i + 1], left.lower.pair[i + 1]};
    const uint32_t columns[2] = {right.pair[i], right.pair[i + 1]};
    multiply(sum, rows, columns, T());
  }
}

// scores = norm(F)·aᵀ + c, (16, heads·M): warps share what is summed over, and their sums are added in order.
template <typename T>
__device__ inline void multiply_a(const Arguments& arguments, const T* normed, float* sums, float* scores) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, dim = arguments.dim;
  const int columns = arguments.heads * arguments.confounders, width = kColumns + 4;
  const T* a = static_cast<const T*>(arguments.a);
  for (int first = 0; first < columns; first += kColumns) {
    float sum[kColumns / 8][4] = {};
    for (int chunk = warp; chunk < dim / kChunk; chunk += kWarps) {
      const Share left = load_share(normed, padded(dim), chunk * kChunk, lane);
#pragma unroll
      for (int tile = 0; tile < kColumns / 8; ++tile) {
        const int column = first + tile * 8;
        if (column >= columns) continue;
        const T* place = a + static_cast<size_t>(column + lane / 4) * dim + chunk * kChunk + lane % 4 * 8;
        multiply<T>(sum[tile], left, load_constant(place));
      }
    }
    float* own = sums + warp * kRows * width;
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile)
      for (int i = 0; i < 4; ++i) own[(lane / 4 + i / 2 * 8) * width + tile * 8 + lane % 4 * 2 + i % 2] = sum[tile][i];
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      if (first + column >= columns) continue;
      float total = to_float(static_cast<const T*>(arguments.c)[first + column]);
      for (int w = 0; w < kWarps; ++w) total += sums[(w * kRows + row) * width + column];
      scores[row * columns + first + column] = total;
    }
    __syncthreads();
  }
}

// Softmax over the confounders for every row and head, in float32 in place and rounded into `weights`.
template <typename T>
__device__ inline void softmax(const Arguments& arguments, const Rows& rows, float* scores, T* weights) {
  const int m = arguments.confounders, columns = arguments.heads * m, stride = padded(columns);
  for (int i = threadIdx.x; i < kRows * arguments.heads; i += kThreads) {
    const int row = i / arguments.heads, start = i % arguments.heads * m;
    float* values = scores + row * columns + start;
    float most = -INFINITY, total = 0;
    for (int j = 0; j < m; ++j) most = fmaxf(most, values[j]);
    for (int j = 0; j < m; ++j) total += values[j] = expf(values[j] - most);
    for (int j = 0; j < m; ++j) {
      values[j] = row < rows.count ? values[j] / total : 0.0f;
      store(weights + row * stride + start + j, values[j]);
    }
  }
  const int whole = (columns + kChunk - 1) / kChunk * kChunk;
  for (int i = threadIdx.x; i < kRows * (whole - columns); i += kThreads)
    store(weights + i / (whole - columns) * stride + columns + i % (whole - columns), 0.0f);
  __syncthreads();
}

// out = F + weights·bᵀ: every warp has columns of its own.
template <typename T>
__device__ inline void multiply_b(const Arguments& arguments, const T* features, const Rows& rows, const T* weights) {
  const int lane = threadIdx.x % kWarp, dim = arguments.dim, columns = arguments.heads * arguments.confounders;
  const int row = lane / 4;
  const T* b = static_cast<const T*>(arguments.b);
  T* out = static_cast<T*>(arguments.out) + static_cast<size_t>(blockIdx.y) * arguments.count * dim;
#pragma unroll 4
  for (int first = threadIdx.x / kWarp * 8; first < dim; first += kWarps * 8) {
    float sum[4] = {};
    for (int column = 0; column < columns; column += kChunk) {
      const int own = column + lane % 4 * 8;
      const Eight right =
          own < columns ? load_constant(b + static_cast<size_t>(first + row) * columns + own) : Eight{{0, 0, 0, 0}};
      multiply<T>(sum, load_share(weights, padded(columns), column, lane), right);
    }
    for (int i = 0; i < 2; ++i) {
      const int r = row + 8 * i, column = first + lane % 4 * 2;
      if (r >= rows.count) continue;
      const uint32_t was = *reinterpret_cast<const uint32_t*>(features + static_cast<size_t>(rows.token[r]) * dim + column);
      *reinterpret_cast<uint32_t*>(out + static_cast<size_t>(rows.place[r]) * dim + column) =
          pack(low(was, T()) + sum[2 * i], high(was, T()) + sum[2 * i + 1], T());
    }
  }
}

// The readout: this block's share of the weights' sum; the block that ends last adds all shares, in order.
__device__ inline void read_out(const Arguments& arguments, const Rows& rows, const float* scores, bool& last) {
  const int lane = threadIdx.x % kWarp, batch = blockIdx.y, m = arguments.confounders, heads = arguments.heads;
  float* partial = arguments.partial + static_cast<size_t>(batch) * gridDim.x * m;
  for (int j = threadIdx.x / kWarp; j < m; j += kWarps) {
    float sum = 0;
    for (int i = lane; i < rows.count * heads; i += kWarp) sum += scores[i / heads * heads * m + i % heads * m + j];
    sum = warp_sum(sum);
    if (lane == 0) partial[blockIdx.x * m + j] = sum;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&arguments.finished[batch], 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int j = threadIdx.x; j < m; j += kThreads) {
    float sum = 0;
    for (int block = 0; block < static_cast<int>(gridDim.x); ++block) sum += __ldcg(partial + block * m + j);
    arguments.readout[batch * m + j] = sum / (static_cast<float>(arguments.count) * heads);
  }
}

template <typename T, bool kSelect>
__global__ void __launch_bounds__(kThreads) attend(Arguments arguments) {
  __shared__ Rows rows;
  __shared__ int rank[kRows];
  __shared__ bool last;
  const int columns = arguments.heads * arguments.confounders;
  T* normed = reinterpret_cast<T*>(shared_memory());                    // (16, d)
  T* weights = normed + kRows * padded(arguments.dim);                  // (16, heads·M)
  float* sums = reinterpret_cast<float*>(weights + kRows * padded(columns));  // (8, 16, 64)
  float* scores = sums + kWarps * kRows * (kColumns + 4);               // (16, heads·M)
  float* similarity = scores + kRows * columns;                         // (T,)
  const T* features =
      static_cast<const T*>(arguments.features) + static_cast<size_t>(blockIdx.y) * arguments.tokens * arguments.dim;
  if (kSelect) {
    wait_for_last_kernel();
    take_best(arguments, similarity, rank, rows);
  } else {
    take_in_order(arguments, rows);
  }
  if (rows.count) {  // the same for the whole block
    normalise(arguments, features, rows, normed);
    multiply_a(arguments, normed, sums, scores);
    softmax(arguments, rows, scores, weights);
    multiply_b(arguments, features, rows, weights);
  }
  read_out(arguments, rows, scores, last);
}

}  // namespace mcdrl_rt
