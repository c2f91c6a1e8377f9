// Tokens of a prompt that rows keep, written to their slots of an arena on a CPU.
//
//   int kvb_cpu_gather(const RaggedGather* call, stream)
//
// Segment s gets the kept tokens of KV head head[s], in order, from slot start[s] on. Its other slots, up to
// start[s + 1], become 0. Returns 0, -1 if the dtype is not supported, or -2 if a segment keeps more than its slots; then
// its tokens are cut.
//
// This file is compiled with -fopenmp but linked without it, so that it uses the OpenMP runtime that torch has loaded.

#include <cstring>

#include "calls.h"

namespace {

// Call copy(t) for every token that is kept. Eight tokens are skipped at once where none of them is.
template <typename Copy>
void each_kept(const unsigned char* keep, int64_t tokens, Copy copy) {
    int64_t t = 0;
    for (; t + 8 <= tokens; t += 8) {
        uint64_t eight;
        std::memcpy(&eight, keep + t, sizeof eight);
        if (eight == 0) continue;
        for (int64_t i = t; i < t + 8; i++)
            if (keep[i]) copy(i);
    }
    for (; t < tokens; t++)
        if (keep[t]) copy(t);
}

}  // namespace

extern "C" int kvb_cpu_gather(const kvb::RaggedGather* call, void*) {
    if (call->dtype < 0 || call->dtype > 2) return -1;
    const int64_t size = call->dtype == 2 ? 4 : 2, row = call->dim * size;
    int error = 0;
#pragma omp parallel for schedule(dynamic, 4) reduction(min : error)
    for (int64_t s = 0; s < call->segments; s++) {
        const int64_t head = call->head[s], end = call->start[s + 1];
        const auto* keep = static_cast<const unsigned char*>(call->keep) + s * call->tokens;
        const auto* k = static_cast<const char*>(call->k.data) + head * call->k.stride_0 * size;
        const auto* v = static_cast<const char*>(call->v.data) + head * call->v.stride_0 * size;
        auto *k_to = static_cast<char*>(call->k_to), *v_to = static_cast<char*>(call->v_to);
        int64_t slot = call->start[s];
        each_kept(keep, call->tokens, [&](int64_t t) {
            if (slot == end) {
                error = -2;
                return;
            }
            std::memcpy(k_to + slot * row, k + t * call->k.stride_1 * size, row);
            std::memcpy(v_to + slot * row, v + t * call->v.stride_1 * size, row);
            slot++;
        });
        std::memset(k_to + slot * row, 0, (end - slot) * row);
        std::memset(v_to + slot * row, 0, (end - slot) * row);
    }
    return error;
}
