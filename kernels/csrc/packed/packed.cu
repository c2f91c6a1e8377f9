// Attend to keys and values that are quantised in groups, without decoding them first: the decode step of packed rows.
//
// C ABI. calls.h has the arguments. Returns 0, a cudaError, or a code of common.h.
//
//   int kvb_packed_decode(const PackedDecode* call, cudaStream_t stream);
//     Layouts, `place` and `count` are as in cpu_packed.cpp. Nothing is appended. `most` is the largest number of tokens
//     of a lane, stored and new together; the number of blocks follows from it.
//   int64_t kvb_packed_workspace(int64_t lanes, int64_t queries, int64_t dim, int64_t most);     bytes
#include "calls.h"
#include "common.h"

namespace {

using kvb::kNothing;
using kvb::kThreads;

constexpr int kPiece = 256;   // tokens of a block
constexpr int kTogether = 8;  // queries that share the work of unpacking
constexpr int kMostDim = 256;

struct Packed {
    const uint8_t* codes;
    const void *scale, *low, *plain, *fresh;
    int64_t stride_b, stride_u, stride_t;
    const int16_t* channel;
    int dim, bits, group;
};

struct Arguments {
    const void* q;
    int64_t q_b, q_h, q_t;
    Packed keys, values;
    const int32_t *place, *count;
    void* out;
    int64_t out_b, out_h, out_t;
    float* partial;  // [N, pieces, C, 2]: maximum and sum of the weights, in base 2
    float* acc;      // [N, pieces, C, D]
    float scaling;
    int kv_heads, group, tokens, dim, pieces;
};

// Where the tokens of a lane lie, counted by age.
template <typename T> struct Reader {
    const Packed& half;
    const int32_t* place;  // first block, first plain slot, plain slots
    int encoded, stored, batch, head, dim;

    KVB_DEVICE const T* plain(int age) const {
        if (age < stored) return static_cast<const T*>(half.plain) + (int64_t(place[1]) + age % place[2]) * dim;
        const int64_t offset = batch * half.stride_b + head * half.stride_u + (age - stored) * half.stride_t;
        return static_cast<const T*>(half.fresh) + offset;
    }
};

template <typename T> KVB_DEVICE float decoded(const Packed& half, int64_t group, uint8_t byte, int bit) {
    const int code = byte >> bit & ((1 << half.bits) - 1);
    const float scale = kvb::to_float(static_cast<const T*>(half.scale)[group]);
    return static_cast<float>(code) * scale + kvb::to_float(static_cast<const T*>(half.low)[group]);
}

// One block per piece of a lane: kTogether queries at a time.
template <typename T> __global__ void __launch_bounds__(kvb::kThreads) packed_pieces(const Arguments args) {
    struct Scores { float at[kTogether][kPiece]; };
    struct Queries { float at[kTogether * kMostDim]; };  // later the sums of the parts of a value
    KVB_SHARED(Scores, score);
    KVB_SHARED(Queries, shared);
    const int block = static_cast<int>(blockIdx.x), lane = block / args.pieces, first = block % args.pieces * kPiece;
    const int batch = lane / args.kv_heads, head = lane % args.kv_heads, dim = args.dim;
    const int stored = args.count[3 * lane], rows = min(kPiece, stored + args.tokens - first);
    const int queries = args.group * args.tokens, tid = static_cast<int>(threadIdx.x), warp = tid / 32;
    float* const partial = args.partial + int64_t(block) * queries * 2;
    if (rows <= 0) {
        for (int c = tid; c < queries; c += kThreads) {
            partial[2 * c] = kNothing;
            partial[2 * c + 1] = 0;
        }
        return;
    }
    const Packed &keys = args.keys, &values = args.values;
    const int16_t* channel = keys.channel == nullptr ? nullptr : keys.channel + int64_t(lane) * keys.dim;
    const Reader<T> key{keys, args.place + 6 * lane, args.count[3 * lane + 1], stored, batch, head, dim};
    const Reader<T> value{values, args.place + 6 * lane + 3, args.count[3 * lane + 2], stored, batch, head, dim};
    for (int c0 = 0; c0 < queries; c0 += kTogether) {
        const int here = min(kTogether, queries - c0);
        for (int i = tid; i < kTogether * dim; i += kThreads) {
            const int c = i / dim, g = (c0 + c) / args.tokens, t = (c0 + c) % args.tokens;
            const int64_t at = batch * args.q_b + (int64_t(head) * args.group + g) * args.q_h + t * args.q_t + i % dim;
            shared.at[i] = c < here ? kvb::to_float(static_cast<const T*>(args.q)[at]) * args.scaling : 0;
        }
        __syncthreads();
        for (int row = tid; row < rows; row += kThreads) {
            float sum[kTogether] = {};
            const int age = first + row;
            if (age < key.encoded) {
                const int64_t of_block = int64_t(key.place[0]) + age / keys.group;
                const int bit = age % keys.group * keys.bits, row_bytes = keys.group * keys.bits / 8;
                const uint8_t* codes = keys.codes + of_block * keys.dim * row_bytes + bit / 8;
                for (int i = 0; i < keys.dim; ++i) {
                    const int d = channel == nullptr ? i : channel[i];
                    const float x = decoded<T>(keys, of_block * keys.dim + i, codes[i * row_bytes], bit % 8);
#pragma unroll
                    for (int c = 0; c < kTogether; ++c) sum[c] += shared.at[c * dim + d] * x;
                }
            } else {
                const T* from = key.plain(age);
                for (int d = 0; d < dim; ++d) {
                    const float x = kvb::to_float(from[d]);
#pragma unroll
                    for (int c = 0; c < kTogether; ++c) sum[c] += shared.at[c * dim + d] * x;
                }
            }
#pragma unroll
            for (int c = 0; c < kTogether; ++c) {
                const bool sees = c < here && age <= stored + (c0 + c) % args.tokens;
                score.at[c][row] = sees ? sum[c] : kNothing;
            }
        }
        __syncthreads();
        for (int c = warp; c < here; c += kvb::kWarps) {
            float top = kNothing, total = 0;
            for (int row = tid % 32; row < rows; row += 32) top = max(top, score.at[c][row]);
            for (int step = 16; step > 0; step /= 2) top = max(top, __shfl_xor_sync(kvb::kFullWarp, top, step));
            for (int row = tid % 32; row < rows; row += 32) {
                const float x = score.at[c][row], weight = x == kNothing ? 0.0f : kvb::exp2_fast(x - top);
                score.at[c][row] = weight;
                total += weight;
            }
            for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(kvb::kFullWarp, total, step);
            if (tid % 32 == 0) {
                partial[2 * (c0 + c)] = top;
                partial[2 * (c0 + c) + 1] = total;
            }
        }
        for (int c = here + warp; c < kTogether; c += kvb::kWarps)
            for (int row = tid % 32; row < rows; row += 32) score.at[c][row] = 0;
        __syncthreads();
        const int parts = dim >= kThreads ? 1 : kThreads / dim;  // threads that share a channel
        float* const acc = args.acc + (int64_t(block) * queries + c0) * dim;
        for (int i = tid; i < parts * dim; i += kThreads) {
            const int part = i / dim, d = i % dim;
            float sum[kTogether] = {};
            for (int row = part; row < rows; row += parts) {
                const int age = first + row;
                float x;
                if (age < value.encoded) {
                    const int64_t token = int64_t(value.place[0]) + age;
                    const int bit = d * values.bits;
                    const uint8_t byte = values.codes[token * (dim * values.bits / 8) + bit / 8];
                    x = decoded<T>(values, token * (dim / values.group) + d / values.group, byte, bit % 8);
                } else {
                    x = kvb::to_float(value.plain(age)[d]);
                }
#pragma unroll
                for (int c = 0; c < kTogether; ++c) sum[c] += score.at[c][row] * x;
            }
#pragma unroll
            for (int c = 0; c < kTogether; ++c) {
                if (parts > 1) shared.at[(part * kTogether + c) * dim + d] = sum[c];
                else if (c < here) acc[c * dim + d] = sum[c];
            }
        }
        __syncthreads();
        if (parts > 1)
            for (int i = tid; i < here * dim; i += kThreads) {
                float sum = 0;
                for (int part = 0; part < parts; ++part) sum += shared.at[part * kTogether * dim + i];
                acc[i] = sum;
            }
        __syncthreads();
    }
}

// One block per query of a lane merges its pieces.
template <typename T> __global__ void __launch_bounds__(kvb::kThreads) packed_merge(const Arguments args) {
    const int queries = args.group * args.tokens, block = static_cast<int>(blockIdx.x);
    const int lane = block / queries, c = block % queries, g = c / args.tokens, t = c % args.tokens;
    const int batch = lane / args.kv_heads, head = lane % args.kv_heads * args.group + g, dim = args.dim;
    const float* partial = args.partial + (int64_t(lane) * args.pieces * queries + c) * 2;
    const float* acc = args.acc + (int64_t(lane) * args.pieces * queries + c) * dim;
    float top = kNothing, total = 0;
    for (int p = 0; p < args.pieces; ++p) top = max(top, partial[int64_t(p) * queries * 2]);
    for (int p = 0; p < args.pieces; ++p) {
        const float* of_piece = partial + int64_t(p) * queries * 2;
        if (of_piece[1] > 0) total += of_piece[1] * kvb::exp2_fast(of_piece[0] - top);
    }
    T* out = static_cast<T*>(args.out) + batch * args.out_b + head * args.out_h + t * args.out_t;
    for (int d = static_cast<int>(threadIdx.x); d < dim; d += kThreads) {
        float sum = 0;
        for (int p = 0; p < args.pieces; ++p) {
            const float* of_piece = partial + int64_t(p) * queries * 2;
            if (of_piece[1] > 0) sum += acc[int64_t(p) * queries * dim + d] * kvb::exp2_fast(of_piece[0] - top);
        }
        out[d] = kvb::from_float<T>(sum / total);
    }
}

template <typename T> int launch(const Arguments& args, int lanes, cudaStream_t stream) {
    KVB_LAUNCH((packed_pieces<T>), lanes * args.pieces, kThreads, 0, stream, args);
    KVB_LAUNCH((packed_merge<T>), lanes * args.group * args.tokens, kThreads, 0, stream, args);
    return static_cast<int>(cudaGetLastError());
}

Packed half_of(const kvb::PackedHalf& of, const kvb::Tensor4& fresh) {
    return Packed{
        .codes = static_cast<const uint8_t*>(of.codes),
        .scale = of.scale,
        .low = of.low,
        .plain = of.plain,
        .fresh = fresh.data,
        .stride_b = fresh.stride_0,
        .stride_u = fresh.stride_1,
        .stride_t = fresh.stride_2,
        .channel = of.channel,
        .dim = of.dim,
        .bits = of.bits,
        .group = of.group,
    };
}

bool fits(int bits, int group) {
    return bits == 0 || ((bits == 2 || bits == 4 || bits == 8) && group > 0 && group * bits % 8 == 0);
}

}  // namespace

extern "C" int64_t kvb_packed_workspace(int64_t lanes, int64_t queries, int64_t dim, int64_t most) {
    return lanes * kvb::divide_up(most, int64_t{kPiece}) * queries * (dim + 2) * int64_t(sizeof(float));
}

extern "C" int kvb_packed_decode(const kvb::PackedDecode* call, cudaStream_t stream) {
    const kvb::PackedHalf &k = call->keys, &v = call->values;
    const int dim = call->dim;
    if (dim < 8 || dim > kMostDim || dim % 8 != 0 || call->dtype < 0 || call->dtype > 1) return kvb::kUnsupported;
    if (!fits(k.bits, k.group) || !fits(v.bits, v.group)) return kvb::kUnsupported;
    if (v.bits != 0 && dim % v.group != 0) return kvb::kUnsupported;
    if (k.dim < 1 || k.dim > dim || v.channel != nullptr) return kvb::kUnsupported;
    if (call->batch < 1 || call->kv_heads < 1 || call->group < 1 || call->tokens < 1) return kvb::kTooLarge;
    if (call->most < call->tokens) return kvb::kTooLarge;
    const int lanes = call->batch * call->kv_heads, queries = call->group * call->tokens;
    const int pieces = kvb::divide_up(call->most, kPiece);
    float* const partial = static_cast<float*>(call->workspace);
    const Arguments args{
        .q = call->q.data,
        .q_b = call->q.stride_0,
        .q_h = call->q.stride_1,
        .q_t = call->q.stride_2,
        .keys = half_of(k, call->k_new),
        .values = half_of(v, call->v_new),
        .place = call->place,
        .count = call->count,
        .out = call->out.data,
        .out_b = call->out.stride_0,
        .out_h = call->out.stride_1,
        .out_t = call->out.stride_2,
        .partial = partial,
        .acc = partial + int64_t(lanes) * pieces * queries * 2,
        .scaling = call->scaling * kvb::kLog2e,
        .kv_heads = call->kv_heads,
        .group = call->group,
        .tokens = call->tokens,
        .dim = dim,
        .pieces = pieces,
    };
    return call->dtype == 0 ? launch<kvb::bf16>(args, lanes, stream) : launch<kvb::fp16>(args, lanes, stream);
}
