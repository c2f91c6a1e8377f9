// The slots of rows with a decode policy on a CPU: what a policy knows of tokens moves with their keys and values.
//
//   int kvb_cpu_append_slots(const AppendSlots* call, stream)
//   int kvb_cpu_drop_slots(const DropSlots* call, stream)
//   int kvb_cpu_hand_on(const HandOn* call, stream)
//
// Head h of row y holds the columns [0, length) of its segment, and its column c is place first + c in the buffers of the
// policies. A step moves a few hundred bytes per head, so one thread does it. All return 0.

#include <cstring>

#include "calls.h"

// Give the T newest tokens of each head their positions and an empty state.
extern "C" int kvb_cpu_append_slots(const kvb::AppendSlots* call, void*) {
    for (int64_t y = 0; y < call->rows; y++) {
        for (int64_t h = y * call->heads; h < (y + 1) * call->heads; h++) {
            const int64_t place = call->first[h] + call->length[h];
            for (int64_t t = 0; t < call->tokens; t++) {
                call->pos[place + t] = call->seen[y] + static_cast<int32_t>(t);
                call->state[place + t] = 0;
                call->live[place + t] = 1;
            }
            call->length[h] += call->tokens;
        }
        call->seen[y] += static_cast<int32_t>(call->tokens);
    }
    return 0;
}

// Drop a column of each head that holds more than its limit and its buffer: the last one takes its place.
extern "C" int kvb_cpu_drop_slots(const kvb::DropSlots* call, void*) {
    auto *k = static_cast<char*>(call->k), *v = static_cast<char*>(call->v);
    for (int64_t y = 0; y < call->rows; y++)
        for (int64_t h = y * call->heads; h < (y + 1) * call->heads; h++) {
            if (call->length[h] <= call->limit[h] + call->buffer[y]) continue;
            const int64_t last = call->length[h] - 1, column = call->column[h];
            const int64_t to = call->first[h] + column, from = call->first[h] + last;
            if (column != last) {
                const int64_t slot = (call->start[h] + column) * call->bytes, moved = (call->start[h] + last) * call->bytes;
                std::memcpy(k + slot, k + moved, call->bytes);
                std::memcpy(v + slot, v + moved, call->bytes);
                call->pos[to] = call->pos[from];
                call->state[to] = call->state[from];
            }
            call->live[from] = 0;
            call->length[h]--;
            call->stored[call->segment[h]]--;
        }
    return 0;
}

// Add shares of the row that leaves a head to rows that stay. Products are rounded before they are added, as torch does
// it: without the option, g++ would fuse both.
extern "C" __attribute__((optimize("fp-contract=off"))) int kvb_cpu_hand_on(const kvb::HandOn* call, void*) {
    for (int64_t h = 0; h < call->heads; h++) {
        if (!call->due[h]) continue;
        const float* from = call->x + (call->start[h] + call->column[h]) * call->dim;
        for (int64_t i = h * call->takers; i < (h + 1) * call->takers; i++) {
            const float share = call->share[i];
            float* to = call->x + (call->start[h] + call->into[i]) * call->dim;
            if (share == 0) continue;
            for (int64_t d = 0; d < call->dim; d++) to[d] = to[d] + share * from[d];
        }
    }
    return 0;
}
