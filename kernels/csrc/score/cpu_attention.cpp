// Causal attention of a whole prompt on a CPU, in float32, with the log-sum-exp of every query's logits.
//
//   int kvb_cpu_prompt_attention(const PromptAttention* call, stream)
//   int64 kvb_cpu_prompt_attention_workspace(kv_heads, tokens, dim)     bytes that `workspace` needs
//
// The first returns 0, or -1 if the dtype or `dim` is not supported.
//
// Keys and values are laid out in tiles of WIDTH tokens first: keys as columns, values as rows of whole vectors. A block
// of queries passes by a tile, AT_ONCE at a time, and then by the next one (arXiv:2205.14135). Logits never leave the
// registers, exponentials never the L1 cache. A query's result does not depend on the number of threads.

#include "calls.h"
#include "score/cpu_weights.hpp"

namespace {

constexpr float LN_2 = 0.6931471805599453f;
constexpr float NOTHING = -std::numeric_limits<float>::infinity();  // the logit of a key that is not seen
constexpr int BLOCK = 16 * AT_ONCE;  // queries of a task: their results stay in the L2 cache while the tiles pass by

int64_t padded(int64_t dim) { return (dim + LANES - 1) / LANES * LANES; }

// out[i] = out[i] * scale[i] + weights[i] times N vectors of each of WIDTH rows of values.
template <int N>
KVB_INLINE void add_values(float* const* out, const float* scale, const float* weights, const float* values,
                           int64_t stride) {
    Vec total[AT_ONCE][N];
    for (int i = 0; i < AT_ONCE; i++)
        for (int v = 0; v < N; v++) total[i][v] = load(out[i] + v * LANES) * scale[i];
    for (int64_t j = 0; j < WIDTH; j++) {
        Vec row[N];
        for (int v = 0; v < N; v++) row[v] = load(values + j * stride + v * LANES);
        for (int i = 0; i < AT_ONCE; i++)
            for (int v = 0; v < N; v++) total[i][v] += weights[i * WIDTH + j] * row[v];
    }
    for (int i = 0; i < AT_ONCE; i++)
        for (int v = 0; v < N; v++) store(out[i] + v * LANES, total[i][v]);
}

// The softmax so far of AT_ONCE queries.
struct Running {
    float top[AT_ONCE], total[AT_ONCE];
    float* out;  // [AT_ONCE, D in whole vectors]

    void start(float* zeros) {
        out = zeros;
        for (int i = 0; i < AT_ONCE; i++) top[i] = NOTHING, total[i] = 0;
    }

    // Go on with a tile of which query i sees the first ahead + i + 1 keys, at least one.
    KVB_INLINE void add(const Rows& q, const float* keys, const float* values, int64_t dim, int64_t ahead) {
        Vec logit[AT_ONCE][VECS];
        multiply(logit, q, keys, dim);
        alignas(64) float weights[AT_ONCE * WIDTH];
        float scale[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) {
            Vec tops = Vec{} + top[i];
            for (int v = 0; v < VECS; v++) {
                Vec& logits = logit[i][v];
                if (ahead < WIDTH - 1)
                    logits = order() + v * LANES <= static_cast<int32_t>(ahead + i) ? logits : Vec{} + NOTHING;
                tops = logits > tops ? logits : tops;
            }
            const float now = largest(tops);
            scale[i] = exp2_of(top[i] - now);
            top[i] = now;
            Vec all{};
            for (int v = 0; v < VECS; v++) {
                const Vec weight = exp2_of(logit[i][v] - now);
                all += weight;
                store(weights + i * WIDTH + v * LANES, weight);
            }
            total[i] = total[i] * scale[i] + sum(all);
        }
        const int64_t stride = padded(dim);
        int64_t d = 0;
        float* to[AT_ONCE];
        for (; d < stride; d += VECS * LANES) {
            for (int i = 0; i < AT_ONCE; i++) to[i] = out + i * stride + d;
            const int64_t vectors = (stride - d) / LANES;
            if (vectors >= VECS) add_values<VECS>(to, scale, weights, values + d, stride);
            else if (vectors == 3) add_values<3>(to, scale, weights, values + d, stride);
            else if (vectors == 2) add_values<2>(to, scale, weights, values + d, stride);
            else add_values<1>(to, scale, weights, values + d, stride);
        }
    }
};

}  // namespace

extern "C" int kvb_cpu_prompt_attention(const kvb::PromptAttention* call, void*) {
    const int64_t tokens = call->tokens, dim = call->dim, group = call->heads / call->kv_heads, wide = padded(dim);
    if (call->dtype != FLOAT32 || dim > MAX_DIM) return -1;
    const int64_t tiles = (tokens + WIDTH - 1) / WIDTH, blocks = (tokens + BLOCK - 1) / BLOCK;
    auto* all_keys = static_cast<float*>(call->workspace);
    float* all_values = all_keys + call->kv_heads * tiles * WIDTH * dim;
#pragma omp parallel for collapse(2)
    for (int64_t u = 0; u < call->kv_heads; u++)
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t first = t * WIDTH, count = tokens - first < WIDTH ? tokens - first : WIDTH;
            const float* k = static_cast<const float*>(call->k.data) + u * call->k.stride_0 + first * call->k.stride_1;
            const float* v = static_cast<const float*>(call->v.data) + u * call->v.stride_0 + first * call->v.stride_1;
            const float factor = call->scaling * LOG2_E;
            transpose(all_keys + (u * tiles + t) * WIDTH * dim, k, call->k.stride_1, count, dim, factor);
            float* rows = all_values + (u * tiles + t) * WIDTH * wide;
            std::memset(rows, 0, sizeof(float) * WIDTH * wide);
            for (int64_t j = 0; j < count; j++)
                std::memcpy(rows + j * wide, v + j * call->v.stride_1, sizeof(float) * dim);
        }
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int64_t b = blocks - 1; b >= 0; b--)  // the longest first
        for (int64_t h = 0; h < call->heads; h++) {
            const int64_t begin = b * BLOCK, end = tokens - begin < BLOCK ? tokens : begin + BLOCK, u = h / group;
            const float* q = static_cast<const float*>(call->q.data) + h * call->q.stride_0;
            alignas(64) float sums[BLOCK * MAX_DIM];
            std::memset(sums, 0, sizeof(float) * BLOCK * wide);
            Running all[BLOCK / AT_ONCE];
            for (int i = 0; i < BLOCK / AT_ONCE; i++) all[i].start(sums + i * AT_ONCE * wide);
            for (int64_t t = 0; t * WIDTH < end; t++) {
                const float* keys = all_keys + (u * tiles + t) * WIDTH * dim;
                const float* values = all_values + (u * tiles + t) * WIDTH * wide;
                for (int64_t at = begin; at < end; at += AT_ONCE)
                    if (t * WIDTH < at + AT_ONCE) {
                        const Rows rows(q, call->q.stride_1, at, end);
                        all[(at - begin) / AT_ONCE].add(rows, keys, values, dim, at - t * WIDTH);
                    }
            }
            for (int64_t at = begin; at < end; at++) {
                const int i = (at - begin) % AT_ONCE;
                const Running& running = all[(at - begin) / AT_ONCE];
                float* to = static_cast<float*>(call->out.data) + h * call->out.stride_0 + at * call->out.stride_1;
                for (int64_t d = 0; d < dim; d++) to[d] = running.out[i * wide + d] / running.total[i];
                call->lse[h * tokens + at] = (running.top[i] + std::log2(running.total[i])) * LN_2;
            }
        }
    return 0;
}

extern "C" int64_t kvb_cpu_prompt_attention_workspace(int64_t kv_heads, int64_t tokens, int64_t dim) {
    const int64_t tiles = (tokens + WIDTH - 1) / WIDTH, of_token = dim + padded(dim);
    return kv_heads * tiles * WIDTH * of_token * static_cast<int64_t>(sizeof(float));
}
