// The small operations of a decode step between its matrix products: RMSNorm with the residual added before, RoPE of
// queries and keys, SiLU times the up projection.
//
// They round to 16 bits where transformers' functions do, and compute in float32 in between. So a step differs from the
// model's own only in the order of the sums of an RMSNorm. They may start before the previous kernel of the stream ends,
// and wait for it on the device, because they are so short that their launches would take longer than their work.
//
// C ABI. calls.h has the arguments; rows are aligned to 16 bytes. Returns 0, a cudaError, or -1 for a dtype or size that
// is not supported.
//
//   int kvb_add_rms_norm(const AddRmsNorm* call, cudaStream_t stream);
//     residual += x (unless x is null); out = residual / sqrt(mean(residual^2) + eps) * weight. dim: a multiple of 8, at
//     most 16384.
//   int kvb_rope(const Rope* call, cudaStream_t stream);
//     For each head of q and k, in place: RMSNorm if there is a weight, then x = x * cos + (-x[D/2:], x[:D/2]) * sin. D:
//     a multiple of 16, at most 512.
//   int kvb_silu_mul(const SiluMul* call, cudaStream_t stream);
//     out = gate / (1 + exp(-gate)) * up. dim: a multiple of 8.
#include "calls.h"
#include "primitives.h"

namespace kvb {

constexpr int kMostNormThreads = 1024;
constexpr int kHeld = 2;  // 16-byte chunks of a row that a thread of the norm holds
constexpr int kStepThreads = 128, kStepWarps = kStepThreads / 32;

template <typename T>
struct NormArguments {
    T* residual;
    int64_t residual_stride;
    const T* x;
    int64_t x_stride;
    const T* weight;
    float eps;
    T* out;
    int dim;
};

template <typename T>
struct RopeArguments {
    T *q, *k;
    int64_t q_stride_n, q_stride_h, k_stride_n, k_stride_u;
    const T *cos, *sin;
    int64_t cos_stride, sin_stride;
    const T *q_weight, *k_weight;
    float eps;
    int rows, heads, kv_heads, dim;
};

template <typename T>
struct SiluArguments {
    const T *gate, *up;
    int64_t gate_stride, up_stride;
    T* out;
    int rows, dim;
};

// Round to 16 bits, as a tensor between two of torch's operations is.
template <typename T>
KVB_DEVICE float rounded(float x) { return to_float(from_float<T>(x)); }

template <typename T>
KVB_DEVICE void unpack8(uint4 bits, float (&x)[8]) {
    T raw[8];
    memcpy(raw, &bits, sizeof(raw));
    for (int i = 0; i < 8; ++i) x[i] = to_float(raw[i]);
}

template <typename T>
KVB_DEVICE uint4 pack8(const float (&x)[8]) {
    return make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7]));
}

struct WarpSums { float sum[kMostNormThreads / 32]; };

// One CTA per row, a chunk of 8 elements per thread, two in rows of more than 8192 elements.
template <typename T>
__global__ void __launch_bounds__(kMostNormThreads) add_rms_norm(const NormArguments<T> args) {
    KVB_SHARED(WarpSums, partial);
    let_next_kernel_start();
    const int64_t row = blockIdx.x;
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), chunks = args.dim / 8;
    T* const residual = args.residual + row * args.residual_stride;
    float x[kHeld][8];
    uint4 weight[kHeld];
    float sum = 0;
#pragma unroll
    for (int held = 0; held < kHeld; ++held) {
        const int chunk = thread + held * threads;
        if (chunk < chunks) weight[held] = load16(args.weight + 8 * chunk);  // no kernel writes it
    }
    wait_for_previous_kernel();
#pragma unroll
    for (int held = 0; held < kHeld; ++held) {
        const int chunk = thread + held * threads;
        if (chunk >= chunks) continue;
        unpack8<T>(load16(residual + 8 * chunk), x[held]);
        if (args.x != nullptr) {
            float added[8];
            unpack8<T>(load16(args.x + row * args.x_stride + 8 * chunk), added);
            for (int i = 0; i < 8; ++i) x[held][i] = rounded<T>(x[held][i] + added[i]);
            store16(residual + 8 * chunk, pack8<T>(x[held]));
        }
        for (int i = 0; i < 8; ++i) sum += x[held][i] * x[held][i];
    }
    sum = warp_sum(sum);
    if (thread % 32 == 0) partial.sum[thread / 32] = sum;
    __syncthreads();
    sum = warp_sum(thread % 32 < threads / 32 ? partial.sum[thread % 32] : 0.f);
    const float scale = 1 / sqrtf(sum / static_cast<float>(args.dim) + args.eps);
#pragma unroll
    for (int held = 0; held < kHeld; ++held) {
        const int chunk = thread + held * threads;
        if (chunk >= chunks) continue;
        float w[8];
        unpack8<T>(weight[held], w);
        for (int i = 0; i < 8; ++i) x[held][i] = w[i] * rounded<T>(x[held][i] * scale);
        store16(args.out + row * args.dim + 8 * chunk, pack8<T>(x[held]));
    }
}

// One warp per head: a lane has 8 elements of the first half and their partners in the second half.
template <typename T>
__global__ void __launch_bounds__(kStepThreads) rope(const RopeArguments<T> args) {
    const int lane = static_cast<int>(threadIdx.x) % 32, all = args.heads + args.kv_heads;
    const int item = static_cast<int>(blockIdx.x) * kStepWarps + static_cast<int>(threadIdx.x) / 32;
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (item >= args.rows * all) return;  // the whole warp
    const int64_t row = item / all;
    const int head = item % all, half = args.dim / 2, first = 8 * lane;
    const bool is_query = head < args.heads, used = first < half;
    T* const place = is_query ? args.q + row * args.q_stride_n + head * args.q_stride_h
                              : args.k + row * args.k_stride_n + (head - args.heads) * args.k_stride_u;
    const T* const weight = is_query ? args.q_weight : args.k_weight;
    float low[8] = {}, high[8] = {};
    if (used) {
        unpack8<T>(load16(place + first), low);
        unpack8<T>(load16(place + half + first), high);
    }
    if (weight != nullptr) {
        float sum = 0;
        for (int i = 0; i < 8; ++i) sum += low[i] * low[i] + high[i] * high[i];
        const float scale = 1 / sqrtf(warp_sum(sum) / static_cast<float>(args.dim) + args.eps);
        if (used) {
            float w[8];
            unpack8<T>(load16(weight + first), w);
            for (int i = 0; i < 8; ++i) low[i] = rounded<T>(w[i] * rounded<T>(low[i] * scale));
            unpack8<T>(load16(weight + half + first), w);
            for (int i = 0; i < 8; ++i) high[i] = rounded<T>(w[i] * rounded<T>(high[i] * scale));
        }
    }
    if (!used) return;
    const T *const cos = args.cos + row * args.cos_stride, *const sin = args.sin + row * args.sin_stride;
    float c[8], s[8], turned[8];
    unpack8<T>(load16(cos + first), c);
    unpack8<T>(load16(sin + first), s);
    for (int i = 0; i < 8; ++i) turned[i] = rounded<T>(low[i] * c[i]) + rounded<T>(-high[i] * s[i]);
    store16(place + first, pack8<T>(turned));
    unpack8<T>(load16(cos + half + first), c);
    unpack8<T>(load16(sin + half + first), s);
    for (int i = 0; i < 8; ++i) turned[i] = rounded<T>(high[i] * c[i]) + rounded<T>(low[i] * s[i]);
    store16(place + half + first, pack8<T>(turned));
}

template <typename T>
__global__ void __launch_bounds__(kStepThreads) silu_mul(const SiluArguments<T> args) {
    const int item = static_cast<int>(blockIdx.x) * kStepThreads + static_cast<int>(threadIdx.x), chunks = args.dim / 8;
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (item >= args.rows * chunks) return;
    const int64_t row = item / chunks;
    const int first = item % chunks * 8;
    float gate[8], up[8];
    unpack8<T>(load16(args.gate + row * args.gate_stride + first), gate);
    unpack8<T>(load16(args.up + row * args.up_stride + first), up);
    for (int i = 0; i < 8; ++i) up[i] *= rounded<T>(gate[i] / (1 + expf(-gate[i])));
    store16(args.out + row * args.dim + first, pack8<T>(up));
}

template <typename T>
int launch_norm(const AddRmsNorm& call, cudaStream_t stream) {
    const NormArguments<T> args{
        .residual = static_cast<T*>(call.residual.data),
        .residual_stride = call.residual.stride_0,
        .x = static_cast<const T*>(call.x.data),
        .x_stride = call.x.stride_0,
        .weight = static_cast<const T*>(call.weight),
        .eps = call.eps,
        .out = static_cast<T*>(call.out),
        .dim = call.dim,
    };
    const int wanted = (call.dim / 8 + 32 * kHeld - 1) / (32 * kHeld) * 32;  // few: there is room beside a product
    KVB_LAUNCH_EARLY((add_rms_norm<T>), call.rows, wanted < kMostNormThreads ? wanted : kMostNormThreads, 0, stream,
                     args);
    return static_cast<int>(cudaGetLastError());
}

template <typename T>
int launch_rope(const Rope& call, cudaStream_t stream) {
    const RopeArguments<T> args{
        .q = static_cast<T*>(call.q.data),
        .k = static_cast<T*>(call.k.data),
        .q_stride_n = call.q.stride_0,
        .q_stride_h = call.q.stride_1,
        .k_stride_n = call.k.stride_0,
        .k_stride_u = call.k.stride_1,
        .cos = static_cast<const T*>(call.cos.data),
        .sin = static_cast<const T*>(call.sin.data),
        .cos_stride = call.cos.stride_0,
        .sin_stride = call.sin.stride_0,
        .q_weight = static_cast<const T*>(call.q_weight),
        .k_weight = static_cast<const T*>(call.k_weight),
        .eps = call.eps,
        .rows = call.rows,
        .heads = call.heads,
        .kv_heads = call.kv_heads,
        .dim = call.dim,
    };
    const int blocks = (call.rows * (call.heads + call.kv_heads) + kStepWarps - 1) / kStepWarps;
    KVB_LAUNCH_EARLY((rope<T>), blocks, kStepThreads, 0, stream, args);
    return static_cast<int>(cudaGetLastError());
}

template <typename T>
int launch_silu(const SiluMul& call, cudaStream_t stream) {
    const SiluArguments<T> args{
        .gate = static_cast<const T*>(call.gate.data),
        .up = static_cast<const T*>(call.up.data),
        .gate_stride = call.gate.stride_0,
        .up_stride = call.up.stride_0,
        .out = static_cast<T*>(call.out),
        .rows = call.rows,
        .dim = call.dim,
    };
    const int blocks = (call.rows * (call.dim / 8) + kStepThreads - 1) / kStepThreads;
    KVB_LAUNCH_EARLY((silu_mul<T>), blocks, kStepThreads, 0, stream, args);
    return static_cast<int>(cudaGetLastError());
}

}  // namespace kvb

extern "C" int kvb_add_rms_norm(const kvb::AddRmsNorm* call, cudaStream_t stream) {
    using namespace kvb;
    if (call->rows < 1 || call->dim < 8 || call->dim % 8 != 0 || call->dim > 8 * kHeld * kMostNormThreads) return -1;
    if (call->dtype < 0 || call->dtype > 1) return -1;
    return call->dtype == 0 ? launch_norm<bf16>(*call, stream) : launch_norm<fp16>(*call, stream);
}

extern "C" int kvb_rope(const kvb::Rope* call, cudaStream_t stream) {
    using namespace kvb;
    if (call->rows < 1 || call->heads < 1 || call->kv_heads < 1) return -1;
    if (call->dim < 16 || call->dim % 16 != 0 || call->dim > 512 || call->dtype < 0 || call->dtype > 1) return -1;
    if (static_cast<int64_t>(call->rows) * (call->heads + call->kv_heads) > INT32_MAX - kStepWarps) return -1;
    return call->dtype == 0 ? launch_rope<bf16>(*call, stream) : launch_rope<fp16>(*call, stream);
}

extern "C" int kvb_silu_mul(const kvb::SiluMul* call, cudaStream_t stream) {
    using namespace kvb;
    if (call->rows < 1 || call->dim < 8 || call->dim % 8 != 0 || call->dtype < 0 || call->dtype > 1) return -1;
    if (static_cast<int64_t>(call->rows) * (call->dim / 8) > INT32_MAX - kStepThreads) return -1;
    return call->dtype == 0 ? launch_silu<bf16>(*call, stream) : launch_silu<fp16>(*call, stream);
}
