// Matrix product of few rows: y = x W^T + bias for 1 to 16 tokens, optionally with SiLU(gate) * up of its two halves, or
// with RoPE of heads.
//
// The time is that of reading W once. As in decode/attend.h, rows of W are the 16 rows of the mma, and tokens its 8
// columns: y^T = W x^T. The order of the terms of a sum is free, so the contraction over K takes the elements in the
// order in which 16-byte loads deliver them, the same for W and x. Therefore W goes from global memory straight into
// fragments. A CTA has kTiles tiles of 16 rows of W, which share the fragments of x; its warps split K, 64 elements (a
// line of 128 bytes of each row) in turn, and add their sums in shared memory in a fixed order. So the same inputs give
// the same bits.
//
// With r = lane / 4 and c = lane % 4 of a thread, [chunk] of 32 elements of K:
//   weight[tile][half]  row 16 tile + r + 8 half, elements 32 chunk + 8 c .. + 7   (A)
//   x[block]            token 8 block + r, the same elements                       (B)
//   sum[tile][block]    row r: tokens 2c, 2c + 1; row r + 8: the same              (C)
//
// With `early`, the first weights are read before the stream's previous kernel ends, and only x waits for it. So the
// latency of memory, the launch and the end of that kernel overlap. The weight must be one that no kernel still writes.
//
// C ABI. calls.h has the arguments; rows are aligned to 16 bytes. Returns 0, a cudaError, or a code of common.h.
//
//   int kvb_linear(const Linear* call, cudaStream_t stream);
//     out[n, f] = sum over k of x[n, k] weight[f, k], plus bias[f] unless it is null. Sums are float32, rounded once.
//     With `gated`, the rows of the weight are those of a gate and then as many of up: out = gate / (1 + exp(-gate)) *
//     up. With cos and sin, they are heads of `dim` rows, and RoPE turns the first `heads` of them, as kvb_rope does. All
//     that separate operations would write is rounded to 16 bits. inputs: a multiple of 8.
#include "calls.h"
#include "common.h"
#include "linear/tuning.h"
#include "primitives_more.h"

namespace kvb {

// A CTA that has a multiprocessor to itself has more warps than one of many: that many bytes are in flight either way.
constexpr int kWarpsOfMany = KVB_LINEAR_WARPS, kWarpsAlone = KVB_LINEAR_WARPS_ALONE, kResidentWarps = 16;
static_assert(kWarpsOfMany <= kResidentWarps && kWarpsAlone <= kResidentWarps, "all of a CTA's warps are resident");
constexpr int kTiles = KVB_LINEAR_TILES, kTileRows = 16 * kTiles;
constexpr int kDepth = KVB_LINEAR_DEPTH, kDepthX = 2;  // chunks of W and of x that are in flight
constexpr int kMostTokens = 16;

// What is done with the rows of a CTA. Of the pairs, the first halves of its rows are the first elements.
enum Kind {
    kPlain,
    kGated,    // pairs of a gate and up: SiLU(gate) * up
    kRotated,  // pairs of dims of a head, half a head apart, which RoPE turns
};
static_assert(kTiles % 2 == 0 && kDepth % 2 == 0 && kDepth % kDepthX == 0, "pairs of chunks, and of gate and up");

template <typename T>
struct LinearArguments {
    const T* x;
    int64_t x_stride;
    const T* weight;
    const T* bias;
    T* out;
    int tokens, inputs, outputs;  // outputs: of x W^T; in pairs, how many pairs
    bool early;
    const T *cos, *sin;  // [tokens, 2 half]; kRotated only
    int64_t cos_stride, sin_stride;
    int half, heads;  // dims of half a head, and heads that are turned; the others stay as they are
};

template <int kWarps, int kBlocks>
struct WarpProducts {
    float sum[kWarps][8 * kBlocks][kTileRows + 4];  // + 4: other banks for the columns of a fragment
};

static_assert(sizeof(WarpProducts<kWarpsAlone, kMostTokens / 8>) <= 48 * 1024 &&
                  sizeof(WarpProducts<kWarpsOfMany, kMostTokens / 8>) <= 48 * 1024,
              "static shared memory");

KVB_DEVICE int warp_number() { return static_cast<int>(threadIdx.x) / 32; }
KVB_DEVICE int thread_row() { return static_cast<int>(threadIdx.x) % 32 / 4; }
KVB_DEVICE int thread_column() { return static_cast<int>(threadIdx.x) % 4; }

// Elements of K from a warp's first chunk to its chunk `i`.
template <int kWarps>
KVB_BOTH constexpr int distance(int i) { return 64 * kWarps * (i / 2) + 32 * (i % 2); }

// Load 8 elements of each row; those behind the end, where `left` is not positive, are 0.
template <typename T>
KVB_DEVICE void load_weights(uint4 (&weight)[kTiles][2], const T* const (&row)[kTiles][2], int from, int left) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) weight[tile][half] = load_stream_if(left > 0, row[tile][half] + from);
}

template <typename T, int kBlocks>
KVB_DEVICE void load_x(uint4 (&x)[kBlocks], const T* const (&row)[kBlocks], int from, int left) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) x[block] = load_written_if(left > 0, row[block] + from);
}

template <Kind kKind> constexpr int kOutputs = kKind == kPlain ? kTileRows : kTileRows / 2;  // of a CTA

// Row of W of an output or the first of its pair, and from there to the second.
template <Kind kKind, typename T>
KVB_DEVICE int2 rows_of(int output, const LinearArguments<T>& args) {
    if (kKind == kRotated) return make_int2(output + output / args.half * args.half, args.half);
    return make_int2(output, kKind == kGated ? args.outputs : 0);
}

// Row of W that is row `row` of CTA `cta`; one behind the last output is another, whose result nobody takes.
template <Kind kKind, typename T>
KVB_DEVICE int64_t row_of_weight(int cta, int row, const LinearArguments<T>& args) {
    const int2 rows = rows_of<kKind>(min(cta * kOutputs<kKind> + row % kOutputs<kKind>, args.outputs - 1), args);
    return int64_t{rows.x} + (row < kOutputs<kKind> ? 0 : rows.y);
}

template <typename T>
KVB_DEVICE float rounded(float x) { return to_float(from_float<T>(x)); }

// Write what becomes of an output, or of a pair, whose sums are `value`. All is rounded to 16 bits where separate
// operations would round.
template <Kind kKind, typename T>
KVB_DEVICE void write(const LinearArguments<T>& args, int token, int output, const float (&value)[2]) {
    const float low = rounded<T>(value[0]), high = rounded<T>(value[1]);
    if (kKind != kRotated) {
        const float result = kKind == kPlain ? low : high * rounded<T>(low / (1 + expf(-low)));
        args.out[static_cast<int64_t>(token) * args.outputs + output] = from_float<T>(result);
        return;
    }
    const int head = output / args.half, dim = output - head * args.half;
    T* const out = args.out + static_cast<int64_t>(token) * args.outputs * 2 + rows_of<kKind>(output, args).x;
    if (head >= args.heads) {
        out[0] = from_float<T>(low);
        out[args.half] = from_float<T>(high);
        return;
    }
    const T *const cos = args.cos + token * args.cos_stride + dim, *const sin = args.sin + token * args.sin_stride + dim;
    const float turned = rounded<T>(low * to_float(cos[0])) + rounded<T>(-high * to_float(sin[0]));
    out[0] = from_float<T>(turned);
    out[args.half] = from_float<T>(rounded<T>(high * to_float(cos[args.half])) +
                                   rounded<T>(low * to_float(sin[args.half])));
}

template <typename T, int kWarps, int kBlocks, Kind kKind>
__global__ void __launch_bounds__(32 * kWarps, kResidentWarps / kWarps) linear(const LinearArguments<T> args) {
    using Partial = WarpProducts<kWarps, kBlocks>;
    KVB_SHARED(Partial, partial);
    if (!args.early) wait_for_previous_kernel();
    const int cta = static_cast<int>(blockIdx.x);
    const int first = 64 * warp_number() + 8 * thread_column();  // element of K of this thread in its first chunk
    int left = args.inputs - first;
    const T* weight_row[kTiles][2];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = 16 * tile + 8 * half + thread_row();
            weight_row[tile][half] = args.weight + row_of_weight<kKind>(cta, row, args) * args.inputs + first;
        }
    uint4 weight[kDepth][kTiles][2];
#pragma unroll
    for (int i = 0; i < kDepth; ++i) load_weights(weight[i], weight_row, distance<kWarps>(i), left - distance<kWarps>(i));
    wait_for_previous_kernel();  // also if it has waited above: then this returns at once
    let_next_kernel_start();  // not before: CTAs of several kernels would wait side by side, and take places unevenly

    const T* x_row[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
        x_row[block] = args.x + min(8 * block + thread_row(), args.tokens - 1) * args.x_stride + first;
    uint4 x[kDepthX][kBlocks];
#pragma unroll
    for (int i = 0; i < kDepthX; ++i) load_x<T, kBlocks>(x[i], x_row, distance<kWarps>(i), left - distance<kWarps>(i));
    float sum[kTiles][kBlocks][4] = {};
    while (__any_sync(kFullWarp, left > 0)) {  // all lanes go on as long as one has elements
#pragma unroll
        for (int i = 0; i < kDepth; ++i) {
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                const uint4 a = weight[i][tile][0], b = weight[i][tile][1];
#pragma unroll
                for (int block = 0; block < kBlocks; ++block) {
                    const uint4 column = x[i % kDepthX][block];
                    mma16816<T>(sum[tile][block], a.x, b.x, a.y, b.y, column.x, column.y);
                    mma16816<T>(sum[tile][block], a.z, b.z, a.w, b.w, column.z, column.w);
                }
            }
            load_weights(weight[i], weight_row, distance<kWarps>(i + kDepth), left - distance<kWarps>(i + kDepth));
            load_x<T, kBlocks>(x[i % kDepthX], x_row, distance<kWarps>(i + kDepthX), left - distance<kWarps>(i + kDepthX));
        }
        left -= distance<kWarps>(kDepth);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int half = 0; half < 2; ++half) weight_row[tile][half] += distance<kWarps>(kDepth);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) x_row[block] += distance<kWarps>(kDepth);
    }

    const unsigned id = threadIdx.x;  // unsigned, or the compiler keeps the values above, for which registers are few
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                partial.sum[id / 32][8 * block + id % 4 * 2 + j % 2][16 * tile + id % 32 / 4 + j / 2 * 8] =
                    sum[tile][block][j];
    __syncthreads();
#pragma unroll 1
    for (int item = static_cast<int>(id); item < kOutputs<kKind> * args.tokens; item += 32 * kWarps) {
        const int token = item / kOutputs<kKind>, row = item % kOutputs<kKind>, output = cta * kOutputs<kKind> + row;
        if (output >= args.outputs) continue;
        const int2 rows = rows_of<kKind>(output, args);
        float value[2] = {0.f, 0.f};
#pragma unroll
        for (int second = 0; second < (kKind == kPlain ? 1 : 2); ++second) {
#pragma unroll
            for (int other = 0; other < kWarps; ++other)
                value[second] += partial.sum[other][token][row + second * kOutputs<kKind>];
            if (args.bias != nullptr) value[second] += to_float(args.bias[rows.x + second * rows.y]);
        }
        write<kKind>(args, token, output, value);
    }
}

template <typename T, int kWarps, Kind kKind>
void launch_with(const LinearArguments<T>& args, int ctas, cudaStream_t stream) {
    constexpr int kThreads = 32 * kWarps;
    if (args.tokens <= 8) KVB_LAUNCH_EARLY((linear<T, kWarps, 1, kKind>), ctas, kThreads, 0, stream, args);
    else KVB_LAUNCH_EARLY((linear<T, kWarps, 2, kKind>), ctas, kThreads, 0, stream, args);
}

template <typename T, Kind kKind>
int launch_kind(const Linear& call, cudaStream_t stream) {
    const LinearArguments<T> args{
        .x = static_cast<const T*>(call.x.data),
        .x_stride = call.x.stride_0,
        .weight = static_cast<const T*>(call.weight),
        .bias = static_cast<const T*>(call.bias),
        .out = static_cast<T*>(call.out),
        .tokens = call.tokens,
        .inputs = call.inputs,
        .outputs = kKind == kPlain ? call.rows : call.rows / 2,
        .early = call.early != 0,
        .cos = static_cast<const T*>(call.cos.data),
        .sin = static_cast<const T*>(call.sin.data),
        .cos_stride = call.cos.stride_0,
        .sin_stride = call.sin.stride_0,
        .half = call.dim / 2,
        .heads = call.heads,
    };
    const int ctas = divide_up(args.outputs, kOutputs<kKind>);
    if (ctas <= multiprocessors()) launch_with<T, kWarpsAlone, kKind>(args, ctas, stream);
    else launch_with<T, kWarpsOfMany, kKind>(args, ctas, stream);
    return static_cast<int>(cudaGetLastError());
}

template <typename T>
int launch_linear(const Linear& call, cudaStream_t stream) {
    if (call.cos.data != nullptr) return launch_kind<T, kRotated>(call, stream);
    return call.gated != 0 ? launch_kind<T, kGated>(call, stream) : launch_kind<T, kPlain>(call, stream);
}

}  // namespace kvb

extern "C" int kvb_linear(const kvb::Linear* call, cudaStream_t stream) {
    using namespace kvb;
    if (call->tokens < 1 || call->tokens > kMostTokens) return kUnsupported;
    if (call->inputs < 8 || call->inputs % 8 != 0) return kUnsupported;
    if (call->inputs > INT32_MAX / 4 || call->rows < 1 || call->rows > INT32_MAX / 4) return kTooLarge;
    if (call->gated != 0 && call->rows % 2 != 0) return kUnsupported;
    const bool rotated = call->cos.data != nullptr;
    if (rotated && (call->gated != 0 || call->sin.data == nullptr || call->dim < 2)) return kUnsupported;
    if (rotated && (call->dim % 2 != 0 || call->rows % call->dim != 0)) return kUnsupported;
    if (call->dtype == 0) return launch_linear<bf16>(*call, stream);
    return call->dtype == 1 ? launch_linear<fp16>(*call, stream) : kUnsupported;
}
