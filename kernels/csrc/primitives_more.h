// What scoring, selecting and gathering need beyond primitives.h, under both compilers.
#pragma once
#include "common.h"

#ifndef __CUDACC__
namespace kvb_host __attribute__((visibility("hidden"))) {

inline void match_of_warp(Lane* const* warp, unsigned) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (warp[lane] == nullptr) continue;
        unsigned peers = 0;
        for (unsigned other = 0; other < kWarp; ++other)
            if (warp[other] != nullptr && warp[other]->in[0] == warp[lane]->in[0]) peers |= 1u << other;
        warp[lane]->out[0] = peers;
    }
}

}  // namespace kvb_host

// Lanes of the warp that hold the same value.
inline unsigned __match_any_sync(unsigned mask, unsigned value) {
    kvb_host::block.current->lane.in[0] = value;
    return kvb_host::meet(mask, kvb_host::match_of_warp)[0];
}
#endif

namespace kvb {

// The larger of the two; NaN if either is NaN.
KVB_DEVICE float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

// float64 arithmetic that rounds after every operation and is never fused.
#ifdef __CUDACC__
KVB_DEVICE double add_rn(double a, double b) { return __dadd_rn(a, b); }
KVB_DEVICE double mul_rn(double a, double b) { return __dmul_rn(a, b); }
KVB_DEVICE double div_rn(double a, double b) { return __ddiv_rn(a, b); }
KVB_DEVICE double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
inline double add_rn(double a, double b) { return a + b; }
inline double mul_rn(double a, double b) { return a * b; }
inline double div_rn(double a, double b) { return a / b; }
inline double fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
#endif

}  // namespace kvb
