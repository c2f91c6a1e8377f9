// Arguments of the C functions: int kvb_<op>(const <Op>* call, cudaStream_t stream). Those of CPUs, kvb_cpu_<op>, take the
// same structs and ignore the stream.
//
// kvbench_kernels/calls.py has the same structs for ctypes. Every build compares names, types, offsets and sizes, so a
// library whose structs differ does not compile.
//
// Strides are in elements, positions and lengths in slots or tokens, other sizes are counts. dtype is 0 for bfloat16,
// 1 for float16, and 2 for float32, which only CPUs take. Data is only read if its comment does not say that it is written.
//
// Suffixes: B batch rows, H query heads, U KV heads, G = H / U, T tokens, S segments of an arena, R its slots, N lanes
// (b * U + u), D head dimension.
#pragma once
#include <stdint.h>

namespace kvb {

// Tensors of 4, 3 and 2 dimensions; the stride of the last one is 1.
struct Tensor4 {
    void* data;
    int64_t stride_0, stride_1, stride_2;
};
struct Tensor3 {
    void* data;
    int64_t stride_0, stride_1;
};
struct Tensor2 {
    void* data;
    int64_t stride_0;
};

struct RaggedAppend {
    Tensor4 k_new, v_new;  // [B, U, T, D]
    void *k, *v;           // [R, D], contiguous; written
    const int32_t* start;  // [S + 1], first slot of each segment
    int32_t* length;       // [S], live slots of each segment; T is added
    const int32_t* segment;  // [N], segment of each lane
    int32_t* status;         // [1], written if a segment has no room
    int32_t batch, kv_heads, tokens, dim, dtype;
};

// Of kvb_ragged_decode, kvb_ragged_append_decode, and kvb_cpu_attend, which does what the second one does.
struct RaggedDecode {
    Tensor4 q, out;        // [B, H, T, D]; out is written
    Tensor4 k_new, v_new;  // [B, U, T, D]; for kvb_ragged_append_decode only
    void *k, *v;           // [R, D], contiguous; written by kvb_ragged_append_decode
    const int32_t* start;  // [S + 1], first slot of each segment
    int32_t* length;       // [S], live slots of each segment; kvb_ragged_append_decode adds T
    const int32_t* segment;  // [N], segment of each lane
    float* lse;              // [B, H, T], contiguous, natural logarithm; written; may be null; not on a CPU
    void* workspace;         // of kvb_decode_workspace_bytes(dim, ctas) or kvb_cpu_workspace bytes; written
    int32_t* status;         // [1], written if a segment has no room; for kvb_ragged_append_decode only
    float scaling;           // of the logits
    int32_t batch, kv_heads, group, tokens, dim;
    int32_t ctas;  // blocks of the launch; not on a CPU
    int32_t wide;  // 1: what is read serves more than 8 query columns, where there are as many; not on a CPU
    int32_t dtype;
    // 1: no kernel that may still run when this one starts writes a start, a length, a segment, or a row of k and v. These
    // are the stream's previous kernel, and those before it if it lets this one start before they have ended.
    int32_t settled;
};

// Of kvb_decode_weights and kvb_cpu_weights.
struct DecodeWeights {
    const void* q;         // [N, G, T, D], contiguous
    const void* k;         // [R, D], contiguous
    const int32_t* start;  // [S + 1], first slot of each segment
    const int32_t* length;   // [S], live slots of each segment
    const int32_t* segment;  // [N], segment of each lane
    float* out;              // [N, G, T, width], contiguous; written
    float scaling;           // of the logits
    int32_t lanes, group, tokens, dim;
    int32_t width;  // slots of the result
    int32_t dtype;
};

// Quantised keys or values, and those that are not encoded.
struct PackedHalf {
    const void *codes, *scale, *low;  // of encoded tokens
    const void* plain;                // [slots, D], contiguous
    const int16_t* channel;           // [N, C], of encoded keys of each lane; null for all channels
    int32_t dim;                      // C of encoded keys; D if `channel` is null
    int32_t bits;                     // of a code: 2, 4, 8, or 0 if nothing is encoded
    int32_t group;                    // codes that share a scale
};

// Of kvb_packed_decode and kvb_cpu_packed.
struct PackedDecode {
    Tensor4 q, out;        // [B, H, T, D]; out is written
    Tensor4 k_new, v_new;  // [B, U, T, D]
    PackedHalf keys, values;
    const int32_t* place;  // [N, 6], of keys and of values: first block, first plain slot, plain slots
    const int32_t* count;  // [N, 3]: stored tokens, encoded keys, encoded values
    void* workspace;       // of kvb_packed_workspace or kvb_cpu_packed_workspace bytes; written
    float scaling;         // of the logits
    int32_t batch, kv_heads, group, tokens, dim;
    int32_t most;  // tokens of the longest lane, the new ones included; not on a CPU
    int32_t dtype;
};

// Of kvb_cpu_least.
struct Least {
    const float* worth;    // [heads, width], contiguous
    const int32_t* pos;    // [heads, width], contiguous
    const int64_t* length; // [heads], live columns
    int64_t* column;       // [heads]; written
    int64_t heads, width;
};

// Of kvb_cpu_append_slots. Heads are those of all rows, one after the other.
struct AppendSlots {
    int32_t* pos;          // position of the token in each place; written
    float* state;          // the policy's own; written
    uint8_t* live;         // 1 if the place holds a token; written
    int64_t* length;       // [rows * heads], columns of each head; T is added
    int32_t* seen;         // [rows], tokens of the sequence; T is added
    const int64_t* first;  // [rows * heads], place of each head's column 0
    int64_t rows, heads, tokens;
};

// Of kvb_cpu_drop_slots.
struct DropSlots {
    void *k, *v;           // [R, D], contiguous; written
    int32_t* pos;          // position of the token in each place; written
    float* state;          // the policy's own; written
    uint8_t* live;         // 1 if the place holds a token; written
    int64_t* length;       // [rows * heads], columns of each head; written
    int32_t* stored;       // [S], live slots of each segment; written
    const int64_t* first;  // [rows * heads], place of each head's column 0
    const int64_t* start;  // [rows * heads], slot of each head's column 0
    const int64_t* segment;  // [rows * heads], index of each head in `stored`
    const int64_t* column;   // [rows * heads], the column to drop
    const int64_t* limit;    // [rows * heads], columns that a head may hold
    const int64_t* buffer;   // [rows], columns that it may hold above its limit
    int64_t rows, heads, bytes;  // bytes of a row of k
};

// Of kvb_cpu_hand_on.
struct HandOn {
    float* x;              // [R, D], contiguous; written
    const int64_t* start;  // [heads], slot of each head's column 0
    const int64_t* column;  // [heads], the column that leaves
    const uint8_t* due;     // [heads], 1 if it does
    const int64_t* into;    // [heads, takers], contiguous, columns that take over something
    const float* share;     // [heads, takers], contiguous, of the row that leaves
    int64_t heads, takers, dim;
};

// Of kvb_ragged_gather and kvb_cpu_gather.
struct RaggedGather {
    Tensor3 k, v;          // [U, T, D]
    const void* keep;      // [S, T], a byte each: 1 if the token is kept
    const int32_t* head;   // [S], KV head of each segment
    const int32_t* start;  // [S + 1], first slot of each segment
    void *k_to, *v_to;     // [R, D], contiguous; written
    int64_t tokens, dim, segments;
    int32_t dtype;
};

struct RaggedRelayout {
    const void *k, *v;     // [R, D], contiguous
    const int32_t* start;  // [S + 1], first slot of each segment
    const int32_t* length;    // [S], live slots of each segment
    const int32_t* source;    // [places], segment that is copied to each place
    const int32_t* start_to;  // [places + 1], first slot of each place
    void *k_to, *v_to;        // [slots, D], contiguous; written
    int64_t places, dim;
    int32_t dtype;
};

struct WindowScore {
    Tensor3 q;        // [H, window, D]
    Tensor3 k;        // [U, T, D]
    Tensor2 lse;      // [H, window], float32, natural logarithm; data may be null
    float* out;       // [U, T - window], contiguous; written
    void* workspace;  // of kvb_window_score_workspace bytes; written
    int64_t heads, kv_heads, window, tokens, dim;
    int64_t kernel_size;  // tokens that are pooled, an odd number
    float scaling;        // of the logits
    int32_t group;        // over the query heads of a KV head: 0 mean, 1 maximum, 2 sum
    int32_t pool;         // over neighbouring tokens: 0 none, 1 maximum, 2 average
    int32_t dtype;
};

struct RowLse {
    Tensor3 q;   // [H, T, D]
    Tensor3 k;   // [U, T, D]
    float* lse;  // [H, T], contiguous, natural logarithm; written
    int64_t heads, kv_heads, tokens, dim;
    float scaling;  // of the logits
    int32_t dtype;
};

struct ColumnSums {
    Tensor3 q;    // [H, T, D]
    Tensor3 k;    // [U, T, D]
    Tensor2 lse;  // [H, T], float32, as kvb_row_lse writes it
    float* out;   // [H, T], contiguous; written
    int64_t heads, kv_heads, tokens, dim;
    float scaling;  // of the logits
    int32_t dtype;
};

// Of kvb_cpu_query_weights. The queries are those of the last tokens.
struct QueryWeights {
    Tensor3 q;    // [H, Q, D]
    Tensor3 k;    // [U, T, D]
    Tensor2 lse;  // [H, Q], float32, natural logarithm
    float* out;   // [H, Q, T], contiguous; written
    int64_t heads, kv_heads, queries, tokens, dim;
    float scaling;  // of the logits
    int32_t dtype;
};

// Of kvb_cpu_output_norms.
struct OutputNorms {
    Tensor3 v;        // [U, T, D]
    Tensor3 w;        // [H, E, D], output weights of each query head
    float* out;       // [H, T], contiguous; written
    void* workspace;  // of kvb_cpu_output_norms_workspace bytes; written
    int64_t heads, kv_heads, tokens, dim, outputs;
    int32_t dtype;
};

struct Select {
    const float* score;  // [heads, candidates], contiguous
    void* keep;          // [heads, candidates], a byte each; written
    int32_t* count;      // [heads], kept tokens; written
    void* workspace;     // of kvb_select_workspace bytes; written for scope 1 only
    double floor;        // share of `total` that is split evenly over the heads; for scope 1 only
    int64_t heads, candidates;
    int64_t total;  // tokens to keep, at most heads * candidates
    int32_t scope;  // 0 the best of each head, 1 the best of the layer
};

// Of kvb_cpu_prompt_attention.
struct PromptAttention {
    Tensor3 q;        // [H, T, D]
    Tensor3 k, v;     // [U, T, D]
    Tensor3 out;      // [H, T, D]; written
    float* lse;       // [H, T], contiguous, natural logarithm; written
    void* workspace;  // of kvb_cpu_prompt_attention_workspace bytes; written
    int64_t heads, kv_heads, tokens, dim;
    float scaling;  // of the logits
    int32_t dtype;
};

struct AddRmsNorm {
    Tensor2 residual;    // [rows, dim]; x is added
    Tensor2 x;           // [rows, dim]; data may be null
    const void* weight;  // [dim]
    void* out;           // [rows, dim], contiguous; written
    float eps;
    int32_t rows, dim, dtype;
};

struct Rope {
    Tensor3 q;                         // [rows, H, D]; written
    Tensor3 k;                         // [rows, U, D]; written
    Tensor2 cos, sin;                  // [rows, D]
    const void *q_weight, *k_weight;   // [D], of RMSNorms before the rotation; may be null
    float eps;                         // of these RMSNorms
    int32_t rows, heads, kv_heads, dim, dtype;
};

struct SiluMul {
    Tensor2 gate, up;  // [rows, dim]
    void* out;         // [rows, dim], contiguous; written
    int32_t rows, dim, dtype;
};

struct Linear {
    Tensor2 x;           // [tokens, inputs]
    const void* weight;  // [rows, inputs], contiguous
    const void* bias;    // [rows]; may be null
    void* out;           // [tokens, rows], with `gated` [tokens, rows / 2], contiguous; written
    int32_t tokens, inputs, rows;
    Tensor2 cos, sin;  // [tokens, dim], of the rotation of heads; data may be null
    int32_t heads, dim;  // that are rotated, from the first on; of a head
    int32_t gated;  // 1: SiLU of the first half of the rows, times the second half
    int32_t early;  // 1: weight may be read before the stream's previous kernel ends
    int32_t dtype;
};

}  // namespace kvb
