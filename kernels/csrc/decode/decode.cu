// Attention of the newest tokens over a ragged KV cache, with or without appending them first, in one launch.
//
// A lane is a (row of the batch, KV head); its keys are a segment of the flat buffers. The query columns (token, head
// of the group) of a lane are processed in panels of 8, each of which is an item of a narrow kernel. A wide kernel has
// items of up to 64 columns (32 at D = 256), and reads an item's keys and values once (decode/form.h). Work is
// counted in units of 128 keys and split over the CTAs, whatever the lengths are (decode/partition.h). decode/attend.h is
// the inner loop, decode/merge.h merges the pieces of an item. decode/tuning.h has the choices that measurements settle.
// All of this follows from the lengths on the device. The host makes no plan and the grid is fixed, so a captured CUDA
// graph stays valid while lengths grow. The same inputs give the same bits.
//
// With `settled` the kernel starts before the stream's previous one ends. Until `wait_for_previous_kernel` it reads
// lengths, segments and rows that are in the buffers, which that kernel does not write, and writes nothing.
//
// C ABI. calls.h has the arguments. q, out, k_new and v_new have rows aligned to 16 bytes; k and v are aligned to 16
// bytes. dim: 64, 80, 96, 128, 256. Returns 0, a cudaError, or a code of common.h. No two lanes of a call share a
// segment. The caller keeps R, and the cost of all items, below 2^31 (ops/launch_decode.py).
//
//   int kvb_ragged_decode(const RaggedDecode* call, cudaStream_t stream);
//     Token t of T sees slots < length - T + t + 1. The output of a query that sees nothing is 0 (lse: -infinity).
//
//   int kvb_ragged_append_decode(const RaggedDecode* call, cudaStream_t stream);
//     Appends k_new and v_new at length, adds T to length, and decodes. A segment without room for T tokens keeps its
//     rows and length, its lanes' output is that of a decode without appending, and status becomes 1 + segment if it
//     was 0.
//
//   int64_t kvb_decode_workspace_bytes(int dim, int ctas);      enough for all calls with this dim and at most these ctas
//   int64_t kvb_decode_counter_bytes(void);                     the first bytes of it: must be zero before the first
//                                                               launch; every launch leaves them zero
//   int kvb_decode_ctas(int dim, int dtype, int append, int columns);   CTAs that fill the device, for calls of this many
//                                                               query columns; if negative, minus a cudaError
#include <atomic>
#include "calls.h"
#include "decode/lengths.h"
#include "decode/merge.h"
#include "decode/start.h"

namespace kvb {

// CTAs that a multiprocessor holds at once. This bounds their registers, and gives enough loads in flight for the
// multiprocessor's share of the memory bandwidth.
template <int D, bool kWide> constexpr int kResident = D > 64 || kWide ? 1 : 2;

// Merge a part's results. The next part's first rows are on their way meanwhile, if registers suffice.
template <typename T, typename F, typename StartNext>
KVB_DEVICE void merge_part(const DecodeArguments& args, DecodeShared<F>& shared, const Part& part,
                           const StartNext& start_next) {
    if (F::D <= 128) start_next();
    const Merge<T, F> merge{args, shared, part};
    const bool whole = part.units == part.each;
    merge.merge_warps(whole, merge.slot_of(static_cast<int>(blockIdx.x)));
    if (!whole) merge.merge_item();
    __syncthreads();  // all have read the warps' results
    if (F::D > 128) start_next();
}

// The work of a CTA of a narrow kernel. Returns what the first thread got from `arrive`.
template <typename T, typename F, bool kAppend>
KVB_DEVICE unsigned work_narrow(const DecodeArguments& args, DecodeShared<F>& shared, bool early) {
    Attention<T, F, kAppend> attention;
    Cursor at = shared.cursor;
    const int end = shared.end;
    unsigned before = 0;
    Lane lane{};
    if (at.unit < end) {
        lane = lane_at<kAppend>(args, shared, at.lane);
        start_narrow(args, shared, attention, at, lane, end, args.settled);
    } else if (args.settled) {
        wait_for_previous_kernel();
    }
    if (early && threadIdx.x == 0) before = arrive(args);
    while (at.unit < end) {
        const int units = last_unit(at, lane, end) - (at.unit - at.item) / kUnitCost;
        const int column = 2 * thread_column();
        const int2 slots = part_slots<F>(args, at, lane, end);
        attention.run(args, fresh_rows<kAppend>(args, at, lane), at, lane, shared, slots.x, slots.y, column);
        attention.finish(shared);
        const Part part{at, units_of(lane), units};
        __syncthreads();  // the warps' results are there
        at = after(args, at, cost_of(lane));
        const auto start_next = [&] {
            if (at.unit >= end) return;
            if (at.lane != part.at.lane) lane = lane_at<kAppend>(args, shared, at.lane);
            start_narrow(args, shared, attention, at, lane, end, false);
        };
        merge_part<T>(args, shared, part, start_next);
    }
    return before;
}

// The same for a wide kernel, which keeps less in registers while it attends.
template <typename T, typename F, bool kAppend>
KVB_DEVICE unsigned work_wide(const DecodeArguments& args, DecodeShared<F>& shared, bool early) {
    Attention<T, F, kAppend> attention;
    if (shared.cursor.unit < shared.end) {
        const Cursor at = shared.cursor;
        const Lane lane = lane_at<kAppend>(args, shared, at.lane);
        start_wide(args, shared, attention, at, lane, shared.end, args.settled);
    } else if (args.settled) {
        wait_for_previous_kernel();
    }
    if (early && threadIdx.x == 0) shared.before = arrive(args);
    bool more = shared.cursor.unit < shared.end;
    while (more) {
        const Now& now = shared.now;
        const int2 slots = part_slots<F>(args, now.at, now.lane, shared.end);
        attention.run(args, Fresh{}, now.at, now.lane, shared, slots.x, slots.y, 2 * thread_column());
        attention.finish(shared);
        asm volatile("" ::: "memory");  // load what follows again, not keep it in registers
        const Cursor at = now.at;
        Lane lane = now.lane;
        const int end = shared.end;
        const Part part{at, units_of(lane), last_unit(at, lane, end) - (at.unit - at.item) / kUnitCost};
        __syncthreads();  // all warps have written their results, and have read `now`
        const Cursor next = after(args, at, cost_of(lane));
        more = next.unit < end;
        const auto start_next = [&] {
            if (!more) return;
            if (next.lane != at.lane) lane = lane_at<kAppend>(args, shared, next.lane);
            start_wide(args, shared, attention, next, lane, end, false);
        };
        merge_part<T>(args, shared, part, start_next);
    }
    return early && threadIdx.x == 0 ? shared.before : 0;
}

template <typename T, int D, bool kAppend, bool kWide>
__global__ void __launch_bounds__(kDecodeThreads, kResident<D, kWide>) decode(const DecodeArguments args) {
    using F = Form<D, kWide>;
    KVB_DYNAMIC_SHARED(memory);
    DecodeShared<F>& shared = *reinterpret_cast<DecodeShared<F>*>(memory);
    let_next_kernel_start();  // a product may read its weights where CTAs end, and waits for the others
    if (!args.settled) wait_for_previous_kernel();
    find_work<kAppend>(args, shared);
    const bool early = kAppend && args.lanes <= kWindow;  // no length is read again
    unsigned before;
    if constexpr (kWide) before = work_wide<T, F, kAppend>(args, shared, early);
    else before = work_narrow<T, F, kAppend>(args, shared, early);
    if (kAppend) {
        if (!early) __syncthreads();
        if (!early && threadIdx.x == 0) before = arrive(args);
        advance_lengths(args, shared, before);
    }
}

template <typename T, int D, bool kAppend, bool kWide>
int launch(DecodeArguments args, int ctas, cudaStream_t stream) {
    constexpr int kBytes = sizeof(DecodeShared<Form<D, kWide>>);
    using F = Form<D, kWide>;
    while (args.sharers_log2 < F::kMostSharersLog2 && F::kOwn << args.sharers_log2 < args.columns) ++args.sharers_log2;
    args.blocks = divide_up(args.columns, F::kOwn << args.sharers_log2);
    if (kBytes > kMostUnasked) {
        if (const auto error = KVB_ALLOW_SHARED((decode<T, D, kAppend, kWide>), kBytes)) return static_cast<int>(error);
    }
    if (args.settled) KVB_LAUNCH_EARLY((decode<T, D, kAppend, kWide>), ctas, kDecodeThreads, kBytes, stream, args);
    else KVB_LAUNCH((decode<T, D, kAppend, kWide>), ctas, kDecodeThreads, kBytes, stream, args);
    return static_cast<int>(cudaGetLastError());
}

template <typename T, int D, bool kAppend, bool kWide>
int ctas_of() {
    constexpr int kBytes = sizeof(DecodeShared<Form<D, kWide>>);
    if (kBytes > kMostUnasked) {
        if (const auto error = KVB_ALLOW_SHARED((decode<T, D, kAppend, kWide>), kBytes)) return -static_cast<int>(error);
    }
    return resident_ctas(decode<T, D, kAppend, kWide>, kDecodeThreads, kBytes);
}

// Call `call` with the template arguments for a dtype and dim.
template <typename Call>
int dispatch(int dtype, int dim, Call call) {
#define KVB_CASE(D)                                                   \
    case D:                                                           \
        return dtype == 0   ? call.template operator()<bf16, D>()     \
               : dtype == 1 ? call.template operator()<fp16, D>()     \
                            : kUnsupported;
    switch (dim) {
        KVB_CASE(64)
        KVB_CASE(80)
        KVB_CASE(96)
        KVB_CASE(128)
        KVB_CASE(256)
        default: return kUnsupported;
    }
#undef KVB_CASE
}

// Devices of compute capability 8.6, 8.9 and 12.0 have too little shared memory for wide kernels of some head dimensions.
template <int D>
bool is_wide(int columns) {
    return columns > kColumns && static_cast<int>(sizeof(DecodeShared<Form<D, true>>)) <= most_shared_bytes();
}

struct Launch {
    const DecodeArguments& args;
    bool append;
    int ctas;
    cudaStream_t stream;
    int columns;  // the call's, or few, so that a narrow kernel runs
    template <typename T, int D> int operator()() const {
        if (is_wide<D>(columns))
            return append ? launch<T, D, true, true>(args, ctas, stream) : launch<T, D, false, true>(args, ctas, stream);
        else
            return append ? launch<T, D, true, false>(args, ctas, stream) : launch<T, D, false, false>(args, ctas, stream);
    }
};

struct Resident {
    bool append;
    int columns;
    template <typename T, int D> int operator()() const {
        if (is_wide<D>(columns)) return append ? ctas_of<T, D, true, true>() : ctas_of<T, D, false, true>();
        else return append ? ctas_of<T, D, true, false>() : ctas_of<T, D, false, false>();
    }
};

uint16_t* bits(void* pointer) { return static_cast<uint16_t*>(pointer); }

Strides strides(const Tensor4& x) { return {x.stride_0, x.stride_1, x.stride_2}; }

int run(const RaggedDecode& call, bool append, cudaStream_t stream) {
    if (call.batch < 1 || call.kv_heads < 1 || call.group < 1 || call.tokens < 1) return kTooLarge;
    if (call.ctas < 1 || call.ctas > kMaxCtas) return kTooLarge;
    if (int64_t{call.tokens} * call.group > INT32_MAX || int64_t{call.batch} * call.kv_heads > INT32_MAX) return kTooLarge;
    static std::atomic<unsigned> launches{0};
    const int columns = call.tokens * call.group;
    const DecodeArguments args{
        .q = bits(call.q.data),
        .k_new = append ? bits(call.k_new.data) : nullptr,
        .v_new = append ? bits(call.v_new.data) : nullptr,
        .k = bits(call.k),
        .v = bits(call.v),
        .out = bits(call.out.data),
        .q_stride = strides(call.q),
        .k_stride = strides(call.k_new),
        .v_stride = strides(call.v_new),
        .out_stride = strides(call.out),
        .start = call.start,
        .length = call.length,
        .segment = call.segment,
        .lse = call.lse,
        .counters = static_cast<int*>(call.workspace),
        .pieces = reinterpret_cast<float*>(static_cast<char*>(call.workspace) + kCounterBytes),
        .status = call.status,
        .scale_log2 = call.scaling * kLog2e,
        .launch = launches.fetch_add(1, std::memory_order_relaxed),
        .kv_heads = divisor(call.kv_heads),
        .group = divisor(call.group),
        .settled = call.settled != 0,
        .lanes = call.batch * call.kv_heads,
        .tokens = call.tokens,
        .columns = columns,
    };
    return dispatch(call.dtype, call.dim, Launch{args, append, call.ctas, stream, call.wide != 0 ? columns : 1});
}

}  // namespace kvb

extern "C" int64_t kvb_decode_counter_bytes() { return kvb::kCounterBytes; }

extern "C" int64_t kvb_decode_workspace_bytes(int dim, int ctas) {
    if (dim < 1 || ctas < 1 || ctas > kvb::kMaxCtas) return kvb::kTooLarge;
    return kvb::kCounterBytes + int64_t{2} * ctas * kvb::most_slot_floats(dim) * 4;
}

extern "C" int kvb_decode_ctas(int dim, int dtype, int append, int columns) {
    const int ctas = kvb::dispatch(dtype, dim, kvb::Resident{append != 0, columns});
    return ctas > kvb::kMaxCtas ? kvb::kMaxCtas : ctas;
}

extern "C" int kvb_ragged_decode(const kvb::RaggedDecode* call, cudaStream_t stream) {
    return kvb::run(*call, false, stream);
}

extern "C" int kvb_ragged_append_decode(const kvb::RaggedDecode* call, cudaStream_t stream) {
    if (call->k_new.data == nullptr || call->v_new.data == nullptr) return kvb::kUnsupported;
    return kvb::run(*call, true, stream);
}
