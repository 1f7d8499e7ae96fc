// The fused operator in two kernels, so that even one frame's few tokens keep many multiprocessors busy.
//
// attend: a block has 16 tokens and some of the heads, and weighs the confounders: norm(F)·aᵀ + c, then softmax. The
// product is of the tokens as they are, on the tensor cores; mean and variance are taken of the same registers, and the
// norm is applied to what comes out. Other blocks meanwhile take the tokens' best cosine with the class texts.
// update: a block has 8 tokens, whole. It ranks them by counting better scores, which needs no sort, gives ties to the
// lower index and says at once where in the output a token goes; adds weights·bᵀ; and, where asked to, prepares what
// comes next: the norm of the result, and the result plus a constant. It starts while attend still runs (Hopper on), and
// has b in its registers by the time it may go on; of many pictures' tokens, a block takes one group after another.
//
// kParts, of both: how often 256 numbers make a row, for a block's warps (or a warp's lanes) take 256 of it at a time.
//
// All sums are taken in float32 and in a fixed order, so a result does not change from run to run.
#pragma once

#include "rows.cuh"

namespace mcdrl_rt {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 16;     // tokens of a block of attend: the rows of a tensor core's product
constexpr int kChunk = 32;    // of what a product sums over: 16 bytes for each of 4 lanes
constexpr int kTiles = 3;     // products of 8 columns that a warp of attend has in its registers at a time
constexpr int kColumns = 8 * kTiles;
constexpr int kWidth = kColumns + 4;
constexpr int kMaxDim = 1024;
constexpr int kPart = kWarp * 8;  // numbers: 16 bytes for each lane, a chunk for each warp of attend, 16 for each of update
static_assert(kPart == kChunk * kWarps && kPart == 16 * 16);
constexpr int kUpdateThreads = 512;
constexpr int kUpdateWarps = kUpdateThreads / kWarp;
constexpr int kTokens = 8;                              // of a block of update: the columns of a tensor core's product

struct Arguments {
  const void* features;
  const void* texts;
  const void* a;
  const void* c;
  const void* b;
  const void* shift;  // (d,), or null: neither norm nor shift
  void* out;
  void* normed;
  int64_t* indices;
  float* readout;
  float* scores;   // (B, T)
  float* weights;  // (B, T, heads·M)
  int batch, tokens, count, dim, classes, heads, confounders;
  float eps, norm_eps;
};

__host__ __device__ inline int parts(int dim) { return (dim + kPart - 1) / kPart; }

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

__host__ __device__ inline size_t attend_bytes(int columns) {
  return sizeof(float) * (kWarps * ((kRows + 1) * kWidth + 2 * kRows) + (kRows + 1) * columns);
}

__host__ __device__ inline size_t update_bytes(int dim, int columns) {
  return sizeof(float) * kTokens * (dim + 4) + sizeof(uint16_t) * (kTokens * padded(columns) + (kTokens + 1) * dim);
}

// The tokens of this block that one warp of attend looks after: a row each of the upper and the lower half.
template <int kParts>
struct Pair {
  Eight values[2][kParts];
  bool present[2];
};

template <typename T, int kParts>
__device__ inline void load_pair(const Arguments& arguments, Pair<kParts>& pair) {
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
template <typename T, int kParts>
__device__ inline void score(const Arguments& arguments) {
  const int lane = threadIdx.x % kWarp, dim = arguments.dim;
  const T* texts = static_cast<const T*>(arguments.texts);
  Pair<kParts> pair;
  Eight values[kParts];
  load_pair<T>(arguments, pair);
  load_row(texts, dim, lane, values);
  float norm[2], best[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float square = 0;
#pragma unroll
    for (int j = 0; j < 8 * kParts; ++j) {
      const float x = number<T>(pair.values[i][j / 8], j % 8);
      square += x * x;
    }
    norm[i] = fmaxf(sqrtf(warp_sum(square)), 1e-12f);
  }
  for (int text = 0; text < arguments.classes; ++text) {
    float size = 0, dot[2] = {};
    if (text) load_row(texts + static_cast<size_t>(text) * dim, dim, lane, values);
#pragma unroll
    for (int j = 0; j < 8 * kParts; ++j) {
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

// One lane's share of 16 rows × 32 columns, and the product with a share of 8 rows of another matrix. A lane holds 8
// neighbouring columns; which of the product's 16 slots they fill is the same on both sides, so the sum is over the same
// pairs.
struct Share {
  Eight upper, lower;  // rows lane / 4 and lane / 4 + 8
};

template <typename T>
__device__ inline void multiply(float (&sum)[4], const Share& left, const Eight& right) {
  for (int half = 0; half < 2; ++half) {
    const int i = 2 * half;
    const uint32_t rows[4] = {left.upper.pair[i], left.lower.pair[i], left.upper.pair[i + 1], left.lower.pair[i + 1]};
    const uint32_t columns[2] = {right.pair[i], right.pair[i + 1]};
    multiply(sum, rows, columns, T());
  }
}

// A warp's share of the block's tokens: its chunks of all 16.
template <typename T, int kParts>
__device__ inline void load_tokens(const Arguments& arguments, Share (&tokens)[kParts]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = arguments.dim, last = arguments.tokens - 1;
  const T* features = static_cast<const T*>(arguments.features) + static_cast<size_t>(blockIdx.z) * arguments.tokens * dim;
  const int first = blockIdx.x * kRows + lane / 4;
  const T* upper = features + static_cast<size_t>(min(first, last)) * dim + lane % 4 * 8;
  const T* lower = features + static_cast<size_t>(min(first + 8, last)) * dim + lane % 4 * 8;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int column = (i * kWarps + warp) * kChunk;
    tokens[i] = column < dim ? Share{load(upper + column), load(lower + column)} : Share{};
  }
}

// A warp's share of `a`: its chunks of the columns first … first + kColumns, as far as they are before `end`.
template <typename T, int kParts>
__device__ inline void load_a(const Arguments& arguments, int first, int end, Eight (&a)[kParts][kTiles]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = arguments.dim;
#pragma unroll
  for (int i = 0; i < kParts; ++i)
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int column = first + tile * 8, chunk = i * kWarps + warp;
      const bool inside = column < end && chunk * kChunk < dim;
      const T* place = static_cast<const T*>(arguments.a) + static_cast<size_t>(column + lane / 4) * dim;
      a[i][tile] = inside ? load(place + chunk * kChunk + lane % 4 * 8) : Eight{{0, 0, 0, 0}};
    }
}

// Sum and sum of squares of a warp's share of each token, into moments (8 warps, 16, 2).
template <typename T, int kParts>
__device__ inline void add_up(const Share (&tokens)[kParts], float* moments) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float sum[2] = {}, square[2] = {};
#pragma unroll
  for (int i = 0; i < kParts; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[8], y[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        x[j] = number<T>(half ? tokens[i].lower : tokens[i].upper, j);
        y[j] = x[j] * x[j];
      }
      sum[half] += tree(x);
      square[half] += tree(y);
    }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = quarter_sum(sum[half]), squares = quarter_sum(square[half]);
    float* place = moments + 2 * (warp * kRows + lane / 4 + 8 * half);
    if (lane % 4 == 0) place[0] = total, place[1] = squares;
  }
}

// A warp's share of the products F·aᵀ and 1·aᵀ, into sums (8 warps, 16 tokens and the ones, kWidth).
template <typename T, int kParts>
__device__ inline void multiply_a(const Share (&tokens)[kParts], const Eight (&a)[kParts][kTiles], float* sums) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint32_t one = pack(1.0f, 1.0f, T());
  const Share ones = {{{one, one, one, one}}, {{one, one, one, one}}};
  float sum[kTiles][4] = {}, whole[kTiles][4] = {};
#pragma unroll
  for (int i = 0; i < kParts; ++i)
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      multiply<T>(sum[tile], tokens[i], a[i][tile]);
      multiply<T>(whole[tile], ones, a[i][tile]);
    }
  float* own = sums + warp * (kRows + 1) * kWidth;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    for (int i = 0; i < 4; ++i) {
      const int column = tile * 8 + lane % 4 * 2 + i % 2;
      own[(lane / 4 + i / 2 * 8) * kWidth + column] = sum[tile][i];
      if (lane < 4 && i < 2) own[kRows * kWidth + column] = whole[tile][i];
    }
}

// norm(F)·aᵀ + c of the block's columns start … start + kColumns into scores (16, columns). The warps' shares are added
// in a fixed order, by 8 threads for each token and every other 8 columns.
__device__ inline void add_shares(const Arguments& arguments, int start, int columns, const float* sums,
                                  const float* moments, const float* c, float* scores) {
  const int lane = threadIdx.x % 8, row = threadIdx.x / 8 % kRows, half = threadIdx.x / 8 / kRows;
  const float* own = moments + 2 * (lane * kRows + row);  // of the warp that is called as this lane is
  const float mean = eighth_sum(own[0]) / arguments.dim;
  const float variance = fmaxf(eighth_sum(own[1]) / arguments.dim - mean * mean, 0.0f);
  const float scale = rsqrtf(variance + arguments.eps);
#pragma unroll
  for (int column = half * 8 + lane; column < kColumns; column += 16) {
    if (start + column >= columns) continue;
    float parts[kWarps], ones[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      parts[w] = sums[(w * (kRows + 1) + row) * kWidth + column];
      ones[w] = sums[(w * (kRows + 1) + kRows) * kWidth + column];
    }
    scores[row * columns + start + column] = scale * (tree(parts) - mean * tree(ones)) + c[start + column];
  }
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

template <typename T, int kParts>
__global__ void __launch_bounds__(kThreads, kParts < 4 ? 2 : 1) attend(Arguments arguments) {
  wait_for_last_kernel();
  let_next_kernel_start();
  const int all = arguments.heads * arguments.confounders;
  const int together = heads_together(arguments.heads, arguments.confounders) * arguments.confounders;
  const int first = blockIdx.y * together, columns = min(together, all - first);
  if (columns <= 0) {  // the same for the whole block
    score<T, kParts>(arguments);
    return;
  }
  float* sums = reinterpret_cast<float*>(shared_memory());  // (8, 17, kWidth)
  float* moments = sums + kWarps * (kRows + 1) * kWidth;    // (8, 16, 2)
  float* scores = moments + kWarps * 2 * kRows;             // (16, columns)
  float* c = scores + kRows * columns;                      // (columns,)
  Share tokens[kParts];
  Eight a[kParts][kTiles];
  load_tokens<T>(arguments, tokens);
  load_a<T>(arguments, first, first + columns, a);
  for (int i = threadIdx.x; i < columns; i += kThreads) c[i] = to_float(static_cast<const T*>(arguments.c)[first + i]);
  add_up<T>(tokens, moments);
  for (int start = 0; start < columns; start += kColumns) {
    if (start) load_a<T>(arguments, first + start, first + columns, a);
    multiply_a<T>(tokens, a, sums);
    __syncthreads();
    add_shares(arguments, start, columns, sums, moments, c, scores);
    __syncthreads();
  }
  softmax(arguments, scores, first, columns);
}

// Where in the output a token goes: how many are better. The whole warp gets it.
__device__ inline int rank(const Arguments& arguments, int picture, int token) {
  const float* scores = arguments.scores + static_cast<size_t>(picture) * arguments.tokens;
  const float own = __ldcg(scores + token);
  int before = 0;
  for (int first = threadIdx.x % kWarp; first < arguments.tokens; first += 8 * kWarp) {
    float others[8];  // all asked for before any is waited for
#pragma unroll
    for (int i = 0; i < 8; ++i)
      others[i] = first + i * kWarp < arguments.tokens ? __ldcg(scores + first + i * kWarp) : -INFINITY;
#pragma unroll
    for (int i = 0; i < 8; ++i) before += others[i] > own || (others[i] == own && first + i * kWarp < token);
  }
  return warp_sum(before);
}

// A token's weights, rounded once into a row of shared memory, by a warp; zeros where there is no such token.
template <typename T>
__device__ inline void round_weights(const Arguments& arguments, int picture, int token, T* row) {
  const int columns = arguments.heads * arguments.confounders, whole = (columns + kChunk - 1) / kChunk * kChunk;
  const float* from =
      arguments.weights + (static_cast<size_t>(picture) * arguments.tokens + min(token, arguments.tokens - 1)) * columns;
  for (int first = threadIdx.x % kWarp; first < whole; first += 4 * kWarp) {
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = first + i * kWarp;
      values[i] = column < columns && token < arguments.tokens ? __ldcg(from + column) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i * kWarp < whole) store(row + first + i * kWarp, values[i]);
  }
}

// A token's weights averaged over heads, by its warp.
__device__ inline void read_out(const Arguments& arguments, int picture, int token, size_t to) {
  const int m = arguments.confounders, heads = arguments.heads;
  const float* weights = arguments.weights + (static_cast<size_t>(picture) * arguments.tokens + token) * heads * m;
  for (int i = threadIdx.x % kWarp; i < m; i += kWarp) {
    float sum = 0;
#pragma unroll 8
    for (int head = 0; head < heads; ++head) sum += __ldcg(weights + head * m + i);
    arguments.readout[to * m + i] = sum / heads;
  }
}

// A row into shared memory by a warp, which finds it there when it has waited for its copies.
template <typename T>
__device__ inline void copy_row(T* to, const void* rows, size_t row, int dim) {
  const T* from = static_cast<const T*>(rows) + row * dim;
  for (int column = threadIdx.x % kWarp * 8; column < dim; column += kPart) copy_async(to + column, from + column);
}

// The result of one token by its warp: F plus `update`, rounded; and of that its norm, and itself plus a constant.
template <int kParts, typename T>
__device__ inline void finish(const Arguments& arguments, const T* token, const T* shift, const float* update, size_t to) {
  const int lane = threadIdx.x % kWarp, dim = arguments.dim;
  Eight x[kParts], was[kParts], shifts[kParts];
  load_row(token, dim, lane, was);
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int column = (i * kWarp + lane) * 8;
    x[i] = {};
    if (column >= dim) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float added[4];
      load_shared(update + column + 4 * half, added);
#pragma unroll
      for (int j = 0; j < 4; j += 2)
        x[i].pair[2 * half + j / 2] = pack(number<T>(was[i], 4 * half + j) + added[j],
                                           number<T>(was[i], 4 * half + j + 1) + added[j + 1], T());
    }
  }
  T* out = static_cast<T*>(arguments.out) + to * dim;
  if (arguments.shift) {
    load_row(shift, dim, lane, shifts);
    write_norm_and_shift<T>(x, dim, arguments.norm_eps, shifts, static_cast<T*>(arguments.normed) + to * dim, out);
    return;
  }
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int column = (i * kWarp + lane) * 8;
    if (column < dim) *reinterpret_cast<Eight*>(out + column) = x[i];
  }
}

template <typename T, bool kSelect, int kParts>
__global__ void __launch_bounds__(kUpdateThreads, 1) update(Arguments arguments) {
  constexpr int kDeep = kParts < 4 ? 3 : 2;  // chunks of b that a warp has before it may go on: what its registers hold
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = arguments.dim;
  const int columns = arguments.heads * arguments.confounders, stride = padded(columns);
  const unsigned groups = (arguments.tokens + kTokens - 1) / kTokens;  // of a picture
  float* sums = reinterpret_cast<float*>(shared_memory());        // (8, d + 4): no bank is met twice
  T* weights = reinterpret_cast<T*>(sums + kTokens * (dim + 4));  // (8, heads·M)
  T* rows = weights + kTokens * stride;                           // (8, d), F
  T* shift = rows + kTokens * dim;                                // (d,)
  const auto load_b = [&](int chunk, int part) {
    const int row = (part * kUpdateWarps + warp) * 16 + lane / 4, column = chunk * kChunk + lane % 4 * 8;
    const T* place = static_cast<const T*>(arguments.b) + static_cast<size_t>(row) * columns + column;
    return row < dim && column < columns ? Share{load_constant(place), load_constant(place + 8 * columns)} : Share{};
  };
  Share b[kDeep][kParts];
  const auto load_first = [&] {
#pragma unroll
    for (int i = 0; i < kDeep; ++i)
#pragma unroll
      for (int part = 0; part < kParts; ++part) b[i][part] = load_b(i, part);
  };
  // constants: while attend still runs
  load_first();
  if (arguments.shift && warp == 0) copy_row(shift, arguments.shift, 0, dim);
  wait_for_last_kernel();
  let_next_kernel_start();
  for (unsigned group = blockIdx.x;;) {
    const int picture = group / groups, token = group % groups * kTokens + warp % kTokens;
    const bool owner = warp < kTokens && token < arguments.tokens;  // of a token, the same for the whole warp
    int place = token;
    if (owner) copy_row(rows + warp * dim, arguments.features, static_cast<size_t>(picture) * arguments.tokens + token, dim);
    if (warp >= kTokens) round_weights(arguments, picture, token, weights + (warp - kTokens) * stride);
    if (kSelect && owner) place = rank(arguments, picture, token);
    const bool wanted = owner && place < arguments.count;
    const size_t to = static_cast<size_t>(picture) * arguments.count + place;
    if (wanted) read_out(arguments, picture, token, to);
    __syncthreads();
    float sum[kParts][4] = {};
    for (int chunk = 0; chunk * kChunk < columns; chunk += kDeep) {
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        if ((chunk + i) * kChunk >= columns) continue;
        const Eight right = *reinterpret_cast<const Eight*>(weights + lane / 4 * stride + (chunk + i) * kChunk + lane % 4 * 8);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          if (chunk) b[i][part] = load_b(chunk + i, part);
          multiply<T>(sum[part], b[i][part], right);
        }
      }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = (part * kUpdateWarps + warp) * 16 + lane / 4 + i / 2 * 8;
        if (column < dim) sums[(lane % 4 * 2 + i % 2) * (dim + 4) + column] = sum[part][i];
      }
    wait_for_copies();
    __syncthreads();
    if (kSelect && wanted && lane == 0) arguments.indices[to] = token;
    if (wanted) finish<kParts>(arguments, rows + warp * dim, shift, sums + warp * (dim + 4), to);
    group += gridDim.x;
    if (group >= groups * arguments.batch) return;
    __syncwarp();  // not earlier: the registers do not hold both
    load_first();
  }
}

// The forms of the kernels for rows of so many numbers.
template <typename T>
auto attend_for(int dim) {
  const int all = parts(dim);
  return all == 1 ? attend<T, 1> : all == 2 ? attend<T, 2> : all == 3 ? attend<T, 3> : attend<T, 4>;
}
template <typename T, bool kSelect>
auto update_for(int dim) {
  const int all = parts(dim);
  return all == 1   ? update<T, kSelect, 1>
         : all == 2 ? update<T, kSelect, 2>
         : all == 3 ? update<T, kSelect, 3>
                    : update<T, kSelect, 4>;
}

}  // namespace mcdrl_rt
