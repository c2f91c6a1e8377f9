// The small operations of a decode step between its matrix products, on a CPU: what step.cu does, in float32 or
// bfloat16.
//
//   int kvb_cpu_add_rms_norm(const AddRmsNorm* call, stream)
//   int kvb_cpu_rope(const Rope* call, stream)
//   int kvb_cpu_silu_mul(const SiluMul* call, stream)
//
// All return 0, or -1 if the dtype is not supported. Rows are contiguous and of any size; heads of `rope` have an even
// one.
//
// They round where transformers' functions do, and compute in float32 in between. A row is computed by one thread, in
// the same order whatever the other rows are.

#include <type_traits>

#include "calls.h"
#include "cpu_rows.hpp"

namespace {

constexpr int64_t ENOUGH = 16384;  // elements for which a second thread is worth its start

// Call f(row) for each row.
template <typename F>
KVB_INLINE void for_rows(int64_t rows, int64_t dim, F f) {
#pragma omp parallel for if (rows * dim >= ENOUGH)
    for (int64_t row = 0; row < rows; row++) f(row);
}

template <typename T>
KVB_INLINE T* at(const kvb::Tensor2& x, int64_t row) {
    return static_cast<T*>(x.data) + row * x.stride_0;
}

// The next elements of a row of which `left` are left; 0 past its end.
template <typename T>
KVB_INLINE Vec next(const T* x, int64_t left) {
    if (left >= LANES) return vector_of<1>(x, 0);
    float some[LANES] = {};
    for (int64_t i = 0; i < left; i++) some[i] = to_float(x[i]);
    return load(some);
}

// Write the next elements of a row of which `left` are left.
template <typename T>
KVB_INLINE void put(T* x, Vec y, int64_t left) {
    float all[LANES];
    store(all, y);
    if (left >= LANES) {
        for (int i = 0; i < LANES; i++) convert(all[i], x + i);
    } else {
        for (int64_t i = 0; i < left; i++) convert(all[i], x + i);
    }
}

// Round to T, as a tensor between two of torch's operations is.
template <typename T>
KVB_INLINE Vec rounded(Vec x) {
    if constexpr (sizeof(T) == sizeof(float)) return x;
    Ints bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & static_cast<int32_t>(0xffff0000);
    return x == x ? floats_of(bits) : x;
}

// The inverse of the root of a mean square.
KVB_INLINE float inverse(Vec squares, int64_t dim, float eps) {
    return 1.0f / std::sqrt(sum(squares) / static_cast<float>(dim) + eps);
}

template <typename T>
void add_rms_norm(const kvb::AddRmsNorm& call) {
    const int64_t dim = call.dim;
    const auto* weight = static_cast<const T*>(call.weight);
    for_rows(call.rows, dim, [&](int64_t row) {
        T* stream = at<T>(call.residual, row);
        T* out = static_cast<T*>(call.out) + row * dim;
        if (call.x.data != nullptr) {
            const T* x = at<const T>(call.x, row);
            for (int64_t d = 0; d < dim; d += LANES)
                put(stream + d, next(stream + d, dim - d) + next(x + d, dim - d), dim - d);
        }
        Vec squares{};
        for (int64_t d = 0; d < dim; d += LANES) {
            const Vec x = next(stream + d, dim - d);
            squares += x * x;
        }
        const float scale = inverse(squares, dim, call.eps);
        for (int64_t d = 0; d < dim; d += LANES) {
            const Vec normed = rounded<T>(next(stream + d, dim - d) * scale);
            put(out + d, next(weight + d, dim - d) * normed, dim - d);
        }
    });
}

// Rotate one head, after an RMSNorm of it if there is a weight.
template <typename T>
KVB_INLINE void turn(T* head, const T* cos, const T* sin, const T* weight, int64_t dim, float eps) {
    const int64_t half = dim / 2;
    float scale = 1;
    if (weight != nullptr) {
        Vec squares{};
        for (int64_t d = 0; d < dim; d += LANES) {
            const Vec x = next(head + d, dim - d);
            squares += x * x;
        }
        scale = inverse(squares, dim, eps);
    }
    for (int64_t d = 0; d < half; d += LANES) {
        const int64_t left = half - d, up = half + d;
        Vec low = next(head + d, left), high = next(head + up, left);
        if (weight != nullptr) {
            low = rounded<T>(next(weight + d, left) * rounded<T>(low * scale));
            high = rounded<T>(next(weight + up, left) * rounded<T>(high * scale));
        }
        const Vec turned_low = rounded<T>(low * next(cos + d, left)) - rounded<T>(high * next(sin + d, left));
        const Vec turned_high = rounded<T>(high * next(cos + up, left)) + rounded<T>(low * next(sin + up, left));
        put(head + d, turned_low, left);
        put(head + up, turned_high, left);
    }
}

template <typename T>
void rope(const kvb::Rope& call) {
    const int64_t heads = call.heads + call.kv_heads;
    for_rows(call.rows, heads * call.dim, [&](int64_t row) {
        const T *cos = at<const T>(call.cos, row), *sin = at<const T>(call.sin, row);
        for (int64_t h = 0; h < heads; h++) {
            const bool is_query = h < call.heads;
            const kvb::Tensor3& x = is_query ? call.q : call.k;
            T* head = static_cast<T*>(x.data) + row * x.stride_0 + (is_query ? h : h - call.heads) * x.stride_1;
            const void* weight = is_query ? call.q_weight : call.k_weight;
            turn(head, cos, sin, static_cast<const T*>(weight), call.dim, call.eps);
        }
    });
}

// 1 / (1 + e^-x). `exp2_of` takes no positive numbers.
KVB_INLINE Vec sigmoid(Vec x) {
    const Vec size = x < 0 ? -x : x, small = exp2_of(size * -1.44269504f);  // e^-|x|
    return (x < 0 ? small : Vec{} + 1.0f) / (small + 1.0f);
}

template <typename T>
void silu_mul(const kvb::SiluMul& call) {
    const int64_t dim = call.dim;
    for_rows(call.rows, dim, [&](int64_t row) {
        const T *gate = at<const T>(call.gate, row), *up = at<const T>(call.up, row);
        T* out = static_cast<T*>(call.out) + row * dim;
        for (int64_t d = 0; d < dim; d += LANES) {
            const Vec x = next(gate + d, dim - d);
            put(out + d, rounded<T>(x * sigmoid(x)) * next(up + d, dim - d), dim - d);
        }
    });
}

// Call f with a null pointer of the type of `dtype`.
template <typename F>
int with_type(int dtype, F f) {
    if (dtype == FLOAT32)
        f(static_cast<float*>(nullptr));
    else if (dtype == BFLOAT16)
        f(static_cast<Bfloat16*>(nullptr));
    else
        return -1;
    return 0;
}

}  // namespace

extern "C" int kvb_cpu_add_rms_norm(const kvb::AddRmsNorm* call, void*) {
    return with_type(call->dtype, [&](auto* type) { add_rms_norm<std::remove_pointer_t<decltype(type)>>(*call); });
}

extern "C" int kvb_cpu_rope(const kvb::Rope* call, void*) {
    return with_type(call->dtype, [&](auto* type) { rope<std::remove_pointer_t<decltype(type)>>(*call); });
}

extern "C" int kvb_cpu_silu_mul(const kvb::SiluMul* call, void*) {
    return with_type(call->dtype, [&](auto* type) { silu_mul<std::remove_pointer_t<decltype(type)>>(*call); });
}
