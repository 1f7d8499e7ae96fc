// The fused operator in two kernels, so that even one frame's few tokens keep many multiprocessors busy.
//
// attend: a block has 16 tokens and some of the heads. It normalises the tokens into shared memory and weighs the
// confounders: norm(F)·aᵀ + c on the tensor cores, then softmax. Other blocks meanwhile take the tokens' best cosine
// with the class texts.
// update: a block has 16 tokens and 128 columns. It ranks the tokens by counting better scores, which needs no sort,
// gives ties to the lower index and says at once where in the output a token goes; adds weights·bᵀ; and writes those
// that are chosen. It starts while attend still runs (Hopper on), and has its share of b by the time it may go on.
//
// All sums are taken in float32 and in a fixed order, so a result does not change from run to run.
#pragma once

#include "rows.cuh"

namespace mcdrl_rt {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 16;     // tokens of a block: the rows of a tensor core's product
constexpr int kChunk = 32;    // of what a product sums over: 16 bytes for each of 4 lanes
constexpr int kTiles = 3;     // products of 8 columns that a warp of attend has in its registers at a time
constexpr int kColumns = 8 * kTiles;
constexpr int kMaxDim = 1024;
constexpr int kPieces = kMaxDim / (kWarp * 8);          // 16-byte loads of a lane for a token
constexpr int kChunks = kMaxDim / (kChunk * kWarps);    // chunks of a token for each warp of attend
constexpr int kUpdateWarps = 4;                         // 8 threads for each of the 16 tokens
constexpr int kWide = 4;                                // products of 8 columns for each warp of update
constexpr int kSlice = kUpdateWarps * 8 * kWide;        // columns of the output for each block of update
constexpr int kDeep = 4;                                // chunks of the weights that update multiplies at a time

struct Arguments {
  const void* features;
  const void* texts;
  const void* a;
  const void* c;
  const void* b;
  void* out;
  int64_t* indices;
  float* readout;
  float* scores;   // (B, T)
  float* weights;  // (B, T, heads·M)
  int tokens, count, dim, classes, heads, confounders;
  float eps;
};

// Heads of a block of attend: few, for many blocks; their columns fill whole products.
__host__ __device__ inline int heads_together(int heads, int confounders) {
  int together = 1;
  while (together < heads && (together * confounders < 24 || together * confounders % 8)) ++together;
  return together;
}

// Numbers in a row of shared memory: 8 lanes that read 16 bytes of two rows then meet every bank once.
__host__ __device__ inline int padded(int columns) {
  columns = (columns + kChunk - 1) / kChunk * kChunk;
  return columns % 64 ? columns : columns + 32;
}

__host__ __device__ inline size_t attend_bytes(int dim, int columns) {
  return sizeof(uint16_t) * kRows * padded(dim) +
         sizeof(float) * (kRows * kWarps * (kColumns + 4) + (kRows + 1) * columns);
}

__host__ __device__ inline size_t update_bytes(int columns) { return sizeof(uint16_t) * kRows * padded(columns); }

// The tokens of this block that one warp of attend looks after: a row each of the upper and the lower half.
struct Pair {
  Eight values[2][kPieces];
  bool present[2];
};

template <typename T>
__device__ inline void load_pair(const Arguments& arguments, Pair& pair) {
  const int lane = threadIdx.x % kWarp, last = arguments.tokens - 1;
  const T* features =
      static_cast<const T*>(arguments.features) + static_cast<size_t>(blockIdx.z) * arguments.tokens * arguments.dim;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = blockIdx.x * kRows + threadIdx.x / kWarp + i * kWarps;
    pair.present[i] = token <= last;
    load_row(features + static_cast<size_t>(min(token, last)) * arguments.dim, arguments.dim, lane, pair.values[i]);
  }
}

// The best cosine with a class text of each of this block's tokens.
template <typename T>
__device__ inline void score(const Arguments& arguments) {
  const int lane = threadIdx.x % kWarp, dim = arguments.dim;
  const T* texts = static_cast<const T*>(arguments.texts);
  Pair pair;
  load_pair<T>(arguments, pair);
  float norm[2], best[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float square = 0;
#pragma unroll
    for (int j = 0; j < 8 * kPieces; ++j) {
      const float x = number<T>(pair.values[i][j / 8], j % 8);
      square += x * x;
    }
    norm[i] = fmaxf(sqrtf(warp_sum(square)), 1e-12f);
  }
  for (int text = 0; text < arguments.classes; ++text) {
    Eight values[kPieces];
    float size = 0, dot[2] = {};
    load_row(texts + static_cast<size_t>(text) * dim, dim, lane, values);
#pragma unroll
    for (int j = 0; j < 8 * kPieces; ++j) {
      const float e = number<T>(values[j / 8], j % 8);
      size += e * e;
      dot[0] += number<T>(pair.values[0][j / 8], j % 8) * e;
      dot[1] += number<T>(pair.values[1][j / 8], j % 8) * e;
    }
    size = fmaxf(sqrtf(warp_sum(size)), 1e-12f);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float cosine = warp_sum(dot[i]) / norm[i] / size;
      best[i] = cosine > best[i] || cosine != cosine ? cosine : best[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = blockIdx.x * kRows + threadIdx.x / kWarp + i * kWarps;
    // a score that is no number comes first, as torch sorts it
    if (lane == 0 && pair.present[i])
      arguments.scores[static_cast<size_t>(blockIdx.z) * arguments.tokens + token] = best[i] == best[i] ? best[i] : INFINITY;
  }
}

// LayerNorm without its affine part of every row, rounded once into shared memory; absent rows are zero.
template <typename T>
__device__ inline void normalise(const Arguments& arguments, const Pair& pair, T* normed) {
  const int lane = threadIdx.x % kWarp, dim = arguments.dim;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Eight(&values)[kPieces] = pair.values[i];
    const auto [mean, scale] = moments<T>(values, dim, lane, arguments.eps);
    T* row = normed + (threadIdx.x / kWarp + i * kWarps) * padded(dim);
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      const int column = (j * kWarp + lane) * 8;
      Eight eight = {{0, 0, 0, 0}};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float first = number<T>(values[j], 2 * k) - mean, second = number<T>(values[j], 2 * k + 1) - mean;
        if (pair.present[i]) eight.pair[k] = pack(first * scale, second * scale, T());
      }
      if (column < dim) *reinterpret_cast<Eight*>(row + column) = eight;
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

// A warp's share of `a`: its chunks of the columns first … first + 32, as far as they are before `end`.
template <typename T>
__device__ inline void load_a(const Arguments& arguments, int first, int end, Eight (&a)[kChunks][kTiles]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = arguments.dim;
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int column = first + tile * 8, chunk = i * kWarps + warp;
      const bool inside = column < end && chunk * kChunk < dim;
      const T* place = static_cast<const T*>(arguments.a) + static_cast<size_t>(column + lane / 4) * dim;
      a[i][tile] = inside ? load_constant(place + chunk * kChunk + lane % 4 * 8) : Eight{{0, 0, 0, 0}};
    }
}

// norm(F)·aᵀ + c of the block's columns start … start + kColumns into scores (16, columns): warps share what is summed
// over, and their sums are added in a fixed order.
template <typename T>
__device__ inline void multiply_a(const Arguments& arguments, const T* normed, const Eight (&a)[kChunks][kTiles],
                                  int start, int columns, const float* c, float* sums, float* scores) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, dim = arguments.dim, width = kColumns + 4;
  float sum[kTiles][4] = {};
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const int chunk = i * kWarps + warp;
    if (chunk * kChunk >= dim) continue;
    const Share left = load_share(normed, padded(dim), chunk * kChunk, lane);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) multiply<T>(sum[tile], left, a[i][tile]);
  }
  float* own = sums + warp * kRows * width;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    for (int i = 0; i < 4; ++i) own[(lane / 4 + i / 2 * 8) * width + tile * 8 + lane % 4 * 2 + i % 2] = sum[tile][i];
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int row = i / kColumns, column = i % kColumns;
    if (start + column >= columns) continue;
    float parts[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) parts[w] = sums[(w * kRows + row) * width + column];
    scores[row * columns + start + column] = c[start + column] + tree(parts);
  }
  __syncthreads();
}

// Softmax over the confounders for every row and head of these columns, into weights: 8 lanes each.
__device__ inline void softmax(const Arguments& arguments, const float* scores, int first, int columns) {
  constexpr int kOwn = 8;  // confounders of a lane, at most
  const int m = arguments.confounders, heads = columns / m, lane = threadIdx.x % 8;
  for (int start = 0; start < kRows * heads; start += kThreads / 8) {  // no lane leaves while others exchange
    const int i = start + threadIdx.x / 8, row = i % kRows, head = i / kRows, token = blockIdx.x * kRows + row;
    const bool inside = head < heads;
    const float* values = scores + row * columns + (inside ? head : 0) * m;
    float x[kOwn], most = -INFINITY, total = 0;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      x[j] = j * 8 + lane < m ? values[j * 8 + lane] : -INFINITY;
      most = fmaxf(most, x[j]);
    }
    most = eighth_max(most);
#pragma unroll
    for (int j = 0; j < kOwn; ++j) total += x[j] = j * 8 + lane < m ? expf(x[j] - most) : 0.0f;
    const float scale = 1.0f / eighth_sum(total);
    if (!inside || token >= arguments.tokens) continue;
    const size_t place = static_cast<size_t>(blockIdx.z) * arguments.tokens + token;
    float* weights = arguments.weights + place * arguments.heads * m + first + head * m;
#pragma unroll
    for (int j = 0; j < kOwn; ++j)
      if (j * 8 + lane < m) weights[j * 8 + lane] = x[j] * scale;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) attend(Arguments arguments) {
  wait_for_last_kernel();
  let_next_kernel_start();
  const int all = arguments.heads * arguments.confounders;
  const int together = heads_together(arguments.heads, arguments.confounders) * arguments.confounders;
  const int first = blockIdx.y * together, columns = min(together, all - first);
  if (columns <= 0) {  // the same for the whole block
    score<T>(arguments);
    return;
  }
  T* normed = reinterpret_cast<T*>(shared_memory());                               // (16, d)
  float* sums = reinterpret_cast<float*>(normed + kRows * padded(arguments.dim));  // (8, 16, kColumns)
  float* scores = sums + kWarps * kRows * (kColumns + 4);                          // (16, columns)
  float* c = scores + kRows * columns;                                             // (columns,)
  Eight a[kChunks][kTiles];
  Pair pair;
  load_pair<T>(arguments, pair);
  load_a<T>(arguments, first, first + columns, a);  // on its way while the tokens are normalised
  for (int i = threadIdx.x; i < columns; i += kThreads) c[i] = to_float(static_cast<const T*>(arguments.c)[first + i]);
  normalise<T>(arguments, pair, normed);
  for (int start = 0; start < columns; start += kColumns) {
    if (start) load_a<T>(arguments, first + start, first + columns, a);
    multiply_a(arguments, normed, a, start, columns, c, sums, scores);
  }
  softmax(arguments, scores, first, columns);
}

// Where in the output this block's tokens go, -1 for those that are not among the first N.
template <bool kSelect>
__device__ inline void rank(const Arguments& arguments, int* places) {
  constexpr int kOwn = kRows / kUpdateWarps;
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * kOwn, tokens = arguments.tokens;
  const int first = blockIdx.x * kRows + row;
  if (!kSelect) {
    if (lane < kOwn) places[row + lane] = first + lane < tokens ? first + lane : -1;
    return;
  }
  const float* scores = arguments.scores + static_cast<size_t>(blockIdx.z) * tokens;
  float own[kOwn];
  int before[kOwn] = {};
#pragma unroll
  for (int i = 0; i < kOwn; ++i) own[i] = __ldcg(scores + min(first + i, tokens - 1));
#pragma unroll 4
  for (int t = lane; t < tokens; t += kWarp) {
    const float other = __ldcg(scores + t);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) before[i] += other > own[i] || (other == own[i] && t < first + i);
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int place = warp_sum(before[i]);
    if (lane == 0) places[row + i] = first + i < tokens && place < arguments.count ? place : -1;
  }
}

// What is said of the chosen tokens: their indices, and the weights averaged over heads.
template <bool kSelect>
__device__ inline void read_out(const Arguments& arguments, const int* places) {
  const int m = arguments.confounders, heads = arguments.heads, first = blockIdx.x * kRows;
  for (int i = threadIdx.x; i < kRows * m; i += kUpdateWarps * kWarp) {
    const int row = i / m, place = places[row];
    if (place < 0) continue;
    const float* weights =
        arguments.weights + (static_cast<size_t>(blockIdx.z) * arguments.tokens + first + row) * heads * m + i % m;
    const size_t to = static_cast<size_t>(blockIdx.z) * arguments.count + place;
    float sum = 0;
#pragma unroll 8
    for (int head = 0; head < heads; ++head) sum += __ldcg(weights + head * m);
    arguments.readout[to * m + i % m] = sum / heads;
    if (kSelect && i % m == 0) arguments.indices[to] = first + row;
  }
}

// Columns `first` … of this warp's share of b, 8 rows a tile.
template <typename T>
__device__ inline void load_b(const Arguments& arguments, int row, int first, bool active, Eight (&b)[kDeep][kWide]) {
  const int lane = threadIdx.x % kWarp, columns = arguments.heads * arguments.confounders;
#pragma unroll
  for (int i = 0; i < kDeep; ++i)
#pragma unroll
    for (int tile = 0; tile < kWide; ++tile) {
      const int column = first + i * kChunk + lane % 4 * 8;
      const T* place = static_cast<const T*>(arguments.b) + static_cast<size_t>(row + tile * 8 + lane / 4) * columns;
      b[i][tile] = active && column < columns ? load_constant(place + column) : Eight{{0, 0, 0, 0}};
    }
}

template <typename T, bool kSelect>
__global__ void __launch_bounds__(kUpdateWarps* kWarp) update(Arguments arguments) {
  __shared__ int places[kRows];
  const int lane = threadIdx.x % kWarp, dim = arguments.dim, columns = arguments.heads * arguments.confounders;
  const int first = blockIdx.x * kRows, column = blockIdx.y * kSlice + threadIdx.x / kWarp * 8 * kWide;
  if (static_cast<int>(blockIdx.y) * kSlice >= dim) {  // the same for the whole block
    wait_for_last_kernel();
    rank<kSelect>(arguments, places);
    __syncthreads();
    read_out<kSelect>(arguments, places);
    return;
  }
  // constants, and what was there before attend: loaded while that still runs
  const bool active = column < dim;
  const T* features = static_cast<const T*>(arguments.features) + static_cast<size_t>(blockIdx.z) * arguments.tokens * dim;
  Eight b[kDeep][kWide];
  load_b<T>(arguments, column, 0, active, b);
  uint32_t was[kWide][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = min(first + lane / 4 + 8 * i, arguments.tokens - 1);
    const T* place = features + static_cast<size_t>(token) * dim + (active ? column : 0) + lane % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < kWide; ++tile) was[tile][i] = *reinterpret_cast<const uint32_t*>(place + tile * 8);
  }
  wait_for_last_kernel();
  rank<kSelect>(arguments, places);
  T* weights = reinterpret_cast<T*>(shared_memory());  // (16, heads·M), rounded once
  const int stride = padded(columns), whole = (columns + kChunk - 1) / kChunk * kChunk, row = threadIdx.x / 8;
  const bool present = first + row < arguments.tokens;
  const float* from = arguments.weights + (static_cast<size_t>(blockIdx.z) * arguments.tokens + first + row) * columns;
#pragma unroll 4
  for (int i = threadIdx.x % 8 * 4; i < whole; i += kChunk) {
    float values[4] = {};
    if (present && i < columns) load_four(from + i, values);
    auto* place = reinterpret_cast<uint32_t*>(weights + row * stride + i);
    place[0] = pack(values[0], values[1], T());
    place[1] = pack(values[2], values[3], T());
  }
  __syncthreads();
  float sum[kWide][4] = {};
  for (int start = 0; start < columns; start += kDeep * kChunk) {
    if (start) load_b<T>(arguments, column, start, active, b);
#pragma unroll
    for (int i = 0; i < kDeep; ++i) {
      if (start + i * kChunk >= columns) continue;
      const Share left = load_share(weights, stride, start + i * kChunk, lane);
#pragma unroll
      for (int tile = 0; tile < kWide; ++tile) multiply<T>(sum[tile], left, b[i][tile]);
    }
  }
  T* out = static_cast<T*>(arguments.out) + static_cast<size_t>(blockIdx.z) * arguments.count * dim;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int place = places[lane / 4 + 8 * i];
    if (place < 0 || !active) continue;
    T* row = out + static_cast<size_t>(place) * dim + column + lane % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < kWide; ++tile)
      *reinterpret_cast<uint32_t*>(row + tile * 8) =
          pack(low(was[tile][i], T()) + sum[tile][2 * i], high(was[tile][i], T()) + sum[tile][2 * i + 1], T());
  }
}

}  // namespace mcdrl_rt
