// Attend on a CPU, in float32, to keys and values that are quantised in groups, without decoding them first.
//
//   int kvb_cpu_packed(const PackedDecode* call, stream)
//   int64 kvb_cpu_packed_workspace(count, lanes, group, tokens, dim)             bytes that `workspace` needs
//
// Nothing is appended: the new tokens are attended to where they are. A lane's tokens are counted by age: the stored
// ones, then the new ones; the oldest are encoded. The plain token `age` lies in slot `first + age % slots`. x is code *
// scale + low. Codes of 2, 4 or 8 bits are packed, the first in the lowest bits; bits are 0 where nothing is encoded.
//   keys    blocks of `group` tokens: codes [C, group], scale and low [C], of the channels `channel` of the lane; if that
//           is null, of all D channels
//   values  blocks of one token: codes [D / group, group], scale and low [D / group]
// Returns 0, or -1 if the dtype or a size is not supported: `dim` and the groups must be multiples of 16.

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu_pieces.hpp"

namespace {

struct Half {
    const uint8_t* codes;
    const float *scale, *low, *plain;
    int bits;
    int64_t group;
};

struct Place {
    int64_t block, slot, slots;
};

// How far the code of each lane lies from the lowest bit of its word. 16 codes of 4 bits are two words, whose lanes alternate.
template <int BITS>
KVB_INLINE Ints shifts() {
    constexpr int WORDS = LANES * BITS / 32 > 1 ? LANES * BITS / 32 : 1;
    Ints result;
    for (int i = 0; i < LANES; i++) result[i] = i / WORDS * BITS;
    return result;
}

// The codes of LANES tokens or channels, in the lanes from which `in_order` brings them back.
template <int BITS>
KVB_INLINE Vec unpack(const uint8_t* from) {
    if constexpr (BITS == 8) {
#if defined(__AVX512F__)  // g++ converts bytes in two steps
        __m128i bytes;
        std::memcpy(&bytes, from, sizeof bytes);
        return __builtin_convertvector(reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(bytes)), Vec);
#elif defined(__AVX2__)
        int64_t bytes;
        std::memcpy(&bytes, from, sizeof bytes);
        return __builtin_convertvector(reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes))), Vec);
#else
        typedef uint8_t Bytes __attribute__((vector_size(LANES)));
        Bytes x;
        std::memcpy(&x, from, sizeof x);
        return __builtin_convertvector(__builtin_convertvector(x, Ints), Vec);
#endif
    } else {
#if defined(__AVX512F__)
        // The word of each lane is shifted, and its lowest four bits look up a float: no mask and no conversion.
        int64_t word = 0;
        std::memcpy(&word, from, LANES * BITS / 8);
        const __m512i words = BITS == 4 ? _mm512_set1_epi64(word) : _mm512_set1_epi32(static_cast<int32_t>(word));
        Vec table;
        for (int i = 0; i < 16; i++) table[i] = static_cast<float>(i % (1 << BITS));
        return _mm512_permutexvar_ps(_mm512_srlv_epi32(words, reinterpret_cast<__m512i>(shifts<BITS>())), table);
#else
        uint32_t word = 0;
        std::memcpy(&word, from, LANES * BITS / 8);
        const Ints words = Ints{} + static_cast<int32_t>(word);
        return __builtin_convertvector((words >> shifts<BITS>()) & ((1 << BITS) - 1), Vec);
#endif
    }
}

// Results by lane, in the order of the codes.
template <int BITS>
KVB_INLINE Vec in_order(Vec x) {
#if defined(__AVX512F__)
    if constexpr (BITS == 4) return __builtin_shufflevector(x, x, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
#endif
    return x;
}

// Scores of BLOCK queries against `rows` encoded keys from `age` on; both are multiples of 16. `dim` is any number.
template <int BITS, int BLOCK>
void score_packed(const Half& keys, int64_t first, int64_t age, int rows, const float* const* q, int dim,
                  float (*score)[PIECE + LANES]) {
    const int64_t size = keys.group;
    for (int done = 0; done < rows;) {
        const int64_t block = first + (age + done) / size, offset = (age + done) % size;
        const int take = static_cast<int>(size - offset < rows - done ? size - offset : rows - done);
        const float *scale = keys.scale + block * dim, *low = keys.low + block * dim;
        alignas(64) float scaled[BLOCK][MAX_DIM];  // q . (code * scale + low) = (q * scale) . code + q . low
        float bias[BLOCK] = {};
        for (int c = 0; c < BLOCK; c++) {
            Vec constant{};
            int d = 0;
            for (; d + LANES <= dim; d += LANES) {
                const Vec x = load(q[c] + d);
                store(scaled[c] + d, x * load(scale + d));
                constant += x * load(low + d);
            }
            bias[c] = sum(constant);
            for (; d < dim; d++) {
                scaled[c][d] = q[c][d] * scale[d];
                bias[c] += q[c][d] * low[d];
            }
        }
        const uint8_t* codes = keys.codes + (block * dim * size + offset) * BITS / 8;
        const int64_t step = size * BITS / 8;
        for (int i = 0; i < take;) {
            const uint8_t* from = codes + i * BITS / 8;
            if (take - i >= 2 * LANES) {
                Vec sum[BLOCK][2] = {};
                for (int d = 0; d < dim; d++, from += step) {
                    const Vec x = unpack<BITS>(from), y = unpack<BITS>(from + LANES * BITS / 8);
                    for (int c = 0; c < BLOCK; c++) {
                        sum[c][0] += x * scaled[c][d];
                        sum[c][1] += y * scaled[c][d];
                    }
                }
                for (int c = 0; c < BLOCK; c++) {
                    store(score[c] + done + i, in_order<BITS>(sum[c][0]) + bias[c]);
                    store(score[c] + done + i + LANES, in_order<BITS>(sum[c][1]) + bias[c]);
                }
                i += 2 * LANES;
            } else {
                Vec sum[BLOCK] = {};
                for (int d = 0; d < dim; d++, from += step) {
                    const Vec x = unpack<BITS>(from);
                    for (int c = 0; c < BLOCK; c++) sum[c] += x * scaled[c][d];
                }
                for (int c = 0; c < BLOCK; c++) store(score[c] + done + i, in_order<BITS>(sum[c]) + bias[c]);
                i += LANES;
            }
        }
        done += take;
    }
}

// Scores of BLOCK queries against plain rows; writes up to a multiple of 16 of them.
template <int BLOCK>
void score_plain(const float* const* row, int rows, const float* const* q, int dim, float (*score)[PIECE + LANES],
                 int at) {
    for (int i = 0; i < rows; i += LANES)
        for (int c = 0; c < BLOCK; c++) {
            Vec product[LANES];
            for (int r = 0; r < LANES; r++) {
                const float* from = row[i + r < rows ? i + r : rows - 1];
                product[r] = load(from) * load(q[c]);
                for (int d = LANES; d < dim; d += LANES) product[r] += load(from + d) * load(q[c] + d);
            }
            store(score[c] + at + i, sums(product));
        }
}

// Add `rows` encoded values from token `first` on, by the weights of BLOCK queries, to acc [BLOCK, D].
template <int BITS, int BLOCK, int WIDE>
void weigh_packed(const Half& values, int64_t first, int rows, const float (*weight)[PIECE + LANES], int dim,
                  float* acc) {
    const int groups = dim / static_cast<int>(values.group);
    const float *scale = values.scale + first * groups, *low = values.low + first * groups;
    const int64_t step = dim * BITS / 8;
    alignas(64) float scaled[BLOCK][PIECE];
    float bias[BLOCK] = {};
    for (int d = 0; d < dim; d += WIDE * LANES) {
        if (d % values.group == 0) {
            const int g = d / static_cast<int>(values.group);
            for (int c = 0; c < BLOCK; c++) bias[c] = 0;
            for (int t = 0; t < rows; t++)
                for (int c = 0; c < BLOCK; c++) {
                    scaled[c][t] = weight[c][t] * scale[t * groups + g];
                    bias[c] += weight[c][t] * low[t * groups + g];
                }
        }
        const uint8_t* from = values.codes + first * step + d * BITS / 8;
        Vec sum[BLOCK][WIDE] = {};
        for (int t = 0; t < rows; t++, from += step)
            for (int w = 0; w < WIDE; w++) {
                const Vec x = unpack<BITS>(from + w * LANES * BITS / 8);
                for (int c = 0; c < BLOCK; c++) sum[c][w] += x * scaled[c][t];
            }
        for (int c = 0; c < BLOCK; c++)
            for (int w = 0; w < WIDE; w++) {
                float* to = acc + c * dim + d + w * LANES;
                store(to, load(to) + in_order<BITS>(sum[c][w]) + bias[c]);
            }
    }
}

// Add plain rows, by the weights of BLOCK queries, to acc [BLOCK, D].
template <int BLOCK>
void weigh_plain(const float* const* row, int rows, const float (*weight)[PIECE + LANES], int at, int dim, float* acc) {
    for (int d = 0; d < dim; d += LANES) {
        Vec sum[BLOCK];
        for (int c = 0; c < BLOCK; c++) sum[c] = load(acc + c * dim + d);
        for (int t = 0; t < rows; t++) {
            const Vec x = load(row[t] + d);
            for (int c = 0; c < BLOCK; c++) sum[c] += x * weight[c][at + t];
        }
        for (int c = 0; c < BLOCK; c++) store(acc + c * dim + d, sum[c]);
    }
}

struct Piece {
    const Half *keys, *values;
    Place k, v;
    int64_t first;  // age of its first token
    int rows, packed_keys, packed_values, key_dim;
    const float *k_row[PIECE], *v_row[PIECE];  // the plain ones
};

// `q_keys` are the queries in the channels of encoded keys.
template <int BLOCK>
void attend_block(const Piece& piece, const float* const* q, const float* const* q_keys, const int64_t* seen, int dim,
                  Partial* partial, float* acc) {
    alignas(64) float score[BLOCK][PIECE + LANES];
    const int packed = piece.packed_keys, wide = piece.key_dim;
    switch (packed ? piece.keys->bits : 0) {
        case 2: score_packed<2, BLOCK>(*piece.keys, piece.k.block, piece.first, packed, q_keys, wide, score); break;
        case 4: score_packed<4, BLOCK>(*piece.keys, piece.k.block, piece.first, packed, q_keys, wide, score); break;
        case 8: score_packed<8, BLOCK>(*piece.keys, piece.k.block, piece.first, packed, q_keys, wide, score); break;
    }
    score_plain<BLOCK>(piece.k_row, piece.rows - packed, q, dim, score, packed);
    for (int c = 0; c < BLOCK; c++) {
        const int live = seen[c] < piece.rows ? static_cast<int>(seen[c] < 0 ? 0 : seen[c]) : piece.rows;
        partial[c] = soften(score[c], live);
        for (int i = live; i < piece.rows; i++) score[c][i] = 0;
    }
    std::memset(acc, 0, sizeof(float) * BLOCK * dim);
    const int values = piece.packed_values;
    const int64_t token = piece.v.block + piece.first;
    const bool pairs = values && piece.values->group % (2 * LANES) == 0;
    switch (values ? piece.values->bits + (pairs ? 1 : 0) : 0) {
        case 2: weigh_packed<2, BLOCK, 1>(*piece.values, token, values, score, dim, acc); break;
        case 3: weigh_packed<2, BLOCK, 2>(*piece.values, token, values, score, dim, acc); break;
        case 4: weigh_packed<4, BLOCK, 1>(*piece.values, token, values, score, dim, acc); break;
        case 5: weigh_packed<4, BLOCK, 2>(*piece.values, token, values, score, dim, acc); break;
        case 8: weigh_packed<8, BLOCK, 1>(*piece.values, token, values, score, dim, acc); break;
        case 9: weigh_packed<8, BLOCK, 2>(*piece.values, token, values, score, dim, acc); break;
    }
    weigh_plain<BLOCK>(piece.v_row, piece.rows - values, score, values, dim, acc);
}

void attend(const Piece& piece, const float* const* q, const float* const* q_keys, const int64_t* seen, int columns,
            int dim, Partial* partial, float* acc) {
    int c = 0;
    for (; c + 4 <= columns; c += 4)
        attend_block<4>(piece, q + c, q_keys + c, seen + c, dim, partial + c, acc + c * dim);
    switch (columns - c) {
        case 3: return attend_block<3>(piece, q + c, q_keys + c, seen + c, dim, partial + c, acc + c * dim);
        case 2: return attend_block<2>(piece, q + c, q_keys + c, seen + c, dim, partial + c, acc + c * dim);
        case 1: return attend_block<1>(piece, q + c, q_keys + c, seen + c, dim, partial + c, acc + c * dim);
    }
}

// Point to the plain tokens of ages [age, end): stored ones in their ring, then new ones.
void point(const float* plain, const Place& place, const float* fresh, int64_t stride, int64_t stored, int64_t age,
           int64_t end, int dim, const float** row) {
    int64_t slot = place.slots ? age % place.slots : 0;
    for (; age < end && age < stored; age++) {
        *row++ = plain + (place.slot + slot) * dim;
        if (++slot == place.slots) slot = 0;
    }
    for (; age < end; age++) *row++ = fresh + (age - stored) * stride;
}

bool fits(const kvb::PackedHalf& half) {
    const bool known = half.bits == 2 || half.bits == 4 || half.bits == 8;
    return half.bits == 0 || (known && half.group > 0 && half.group % LANES == 0);
}

Half half_of(const kvb::PackedHalf& x) {
    return {static_cast<const uint8_t*>(x.codes), static_cast<const float*>(x.scale), static_cast<const float*>(x.low),
            static_cast<const float*>(x.plain), x.bits, x.group};
}

int clamp(int64_t x, int64_t most) { return static_cast<int>(x < 0 ? 0 : x > most ? most : x); }

}  // namespace

extern "C" int64_t kvb_cpu_packed_workspace(const int32_t* count, int64_t lanes, int64_t group, int64_t tokens,
                                            int64_t dim) {
    int64_t pieces = 0;
    for (int64_t n = 0; n < lanes; n++) pieces += pieces_of(count[3 * n] + tokens);
    return Workspace::bytes(lanes, pieces, group * tokens, dim);
}

extern "C" int kvb_cpu_packed(const kvb::PackedDecode* call, void*) {
    const int64_t kv_heads = call->kv_heads, lanes = call->batch * kv_heads, tokens = call->tokens;
    const int64_t count = call->group * tokens;
    const int dim = call->dim;
    if (dim % LANES || dim < LANES || dim > MAX_DIM || count < 1 || count > MAX_COLUMNS) return -1;
    if (!fits(call->keys) || !fits(call->values) || (call->values.bits && dim % call->values.group)) return -1;
    const int16_t* channel = call->keys.channel;
    const int key_dim = call->keys.dim;
    if (key_dim < 1 || key_dim > dim || (!channel && key_dim != dim) || call->values.channel) return -1;
    if (call->dtype != FLOAT32) return -1;
    const Half keys = half_of(call->keys), values = half_of(call->values);
    const Workspace work(call->workspace, lanes, count, dim, [&](int64_t n) { return call->count[3 * n] + tokens; });
    const float base2 = call->scaling * 1.4426950408889634f;

#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
        for (int64_t p = 0; p < work.pieces; p++) {
            const int64_t n = work.lane[p], b = n / kv_heads, u = n % kv_heads;
            const int32_t *place = call->place + 6 * n, *of_lane = call->count + 3 * n;
            const int64_t stored = of_lane[0];
            Piece piece;
            piece.keys = &keys;
            piece.values = &values;
            piece.k = {place[0], place[1], place[2]};
            piece.v = {place[3], place[4], place[5]};
            piece.first = (p - work.begin[n]) * PIECE;
            piece.rows = clamp(stored + tokens - piece.first, PIECE);
            piece.packed_keys = clamp(of_lane[1] - piece.first, piece.rows);
            piece.packed_values = clamp(of_lane[2] - piece.first, piece.rows);
            const int64_t end = piece.first + piece.rows;
            point(keys.plain, piece.k, row_of<float>(call->k_new, b, u, 0), call->k_new.stride_2, stored,
                  piece.first + piece.packed_keys, end, dim, piece.k_row);
            point(values.plain, piece.v, row_of<float>(call->v_new, b, u, 0), call->v_new.stride_2, stored,
                  piece.first + piece.packed_values, end, dim, piece.v_row);
            piece.key_dim = key_dim;
            alignas(64) float scaled[MAX_COLUMNS * MAX_DIM], picked[MAX_COLUMNS * MAX_DIM];
            const float *columns[MAX_COLUMNS], *columns_of_keys[MAX_COLUMNS];
            int64_t seen[MAX_COLUMNS];
            for (int64_t c = 0; c < count; c++) {  // query c = g * T + t
                const int64_t g = c / tokens, t = c % tokens;
                const float* from = row_of<float>(call->q, b, u * call->group + g, t);
                for (int64_t d = 0; d < dim; d++) scaled[c * dim + d] = from[d] * base2;
                columns[c] = columns_of_keys[c] = scaled + c * dim;
                if (channel && piece.packed_keys) {
                    float* const of_keys = picked + c * key_dim;
                    for (int i = 0; i < key_dim; i++) of_keys[i] = columns[c][channel[n * key_dim + i]];
                    columns_of_keys[c] = of_keys;
                }
                seen[c] = stored + t + 1 - piece.first;
            }
            attend(piece, columns, columns_of_keys, seen, static_cast<int>(count), dim, work.partial + p * count,
                   work.acc + p * count * dim);
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < lanes; n++)
            for (int64_t c = 0; c < count; c++)
                work.combine_into(row_of<float>(call->out, n / kv_heads, n % kv_heads * call->group + c / tokens,
                                                c % tokens), n, c);
    }
    return 0;
}
