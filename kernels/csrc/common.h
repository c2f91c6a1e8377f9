// Shared by all kernels: what the C functions return, sizes of the attention kernels, integer arithmetic.
#pragma once
#include "primitives.h"

namespace kvb {

// What a C function returns besides 0 and a cudaError.
constexpr int kUnsupported = -1;  // it is not compiled for this dtype, head dimension or option
constexpr int kTooLarge = -2;     // a size is 0, negative, or more than a launch can have
constexpr int64_t kMostBlocks = 65535;  // of a grid's second and third dimension

constexpr int kWarps = 4, kThreads = 32 * kWarps;  // of a block of the kernels that score, or read packed tokens
constexpr int kMostUnasked = 48 * 1024;  // bytes of a block's shared memory without KVB_ALLOW_SHARED
constexpr float kNothing = -1e30f;  // the maximum over no keys; finite, so that no difference is NaN

template <typename A, typename B> KVB_BOTH constexpr auto divide_up(A a, B b) { return (a + b - 1) / b; }

// Division by a number that the host knows: a multiplication and a shift. For dividends from 0 to 2^31 - 1.
struct Divisor {
    int by;
    unsigned factor, shift;
    KVB_DEVICE int quotient(int x) const {
        return static_cast<int>((static_cast<unsigned>(high_product(x, factor)) + static_cast<unsigned>(x)) >> shift);
    }
    KVB_DEVICE int rest(int x) const { return x - quotient(x) * by; }
};

// by >= 1. Source: Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994.
inline Divisor divisor(int by) {
    unsigned shift = 0;
    while ((int64_t{1} << shift) < by) ++shift;
    const uint64_t factor = (((uint64_t{1} << shift) - static_cast<uint64_t>(by)) << 32) / static_cast<uint64_t>(by) + 1;
    return Divisor{by, static_cast<unsigned>(factor), shift};
}

}  // namespace kvb
