// Runs append and decode over buffers that end where the last live slot ends, for the sanitizers to watch.
// Half of the runs have equal lengths and kernels for many queries; with some, decode starts before the previous kernel
// ends. Argument: a seed. Exit status 1: a result is no number, or a counter is not zero.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>
#include "calls.h"

extern "C" {
int kvb_ragged_append(const kvb::RaggedAppend*, void*);
int kvb_ragged_decode(const kvb::RaggedDecode*, void*);
int kvb_ragged_append_decode(const kvb::RaggedDecode*, void*);
int64_t kvb_decode_workspace_bytes(int, int);
int64_t kvb_decode_counter_bytes();
}

namespace {

constexpr int kDim = 80, kLanes = 3;
std::mt19937 generator;

int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

std::vector<uint16_t> numbers(std::size_t count) {  // bf16
    std::vector<uint16_t> drawn(count);
    for (auto& x : drawn) x = static_cast<uint16_t>(0x3f80 ^ (draw(0, 0xffff) & 0x80ff));
    return drawn;
}

bool run(int tokens, int group, int ctas, bool fused, bool equal) {
    const int32_t segment[kLanes] = {1, 0, 2};
    int32_t start[kLanes + 1] = {0}, length[kLanes], status = 0;
    for (int s = 0; s < kLanes; ++s) {
        length[s] = draw(0, 2) == 0 ? 0 : draw(1, 300);
        if (equal) length[s] = s == 0 ? draw(1, 300) : length[0];
        start[s + 1] = start[s] + length[s] + 2 * tokens;
    }
    const std::size_t slots = static_cast<std::size_t>(start[kLanes]), new_rows = std::size_t{kLanes} * tokens;
    std::vector<uint16_t> k = numbers(slots * kDim), v = numbers(slots * kDim);
    std::vector<uint16_t> k_new = numbers(new_rows * kDim), v_new = numbers(new_rows * kDim);
    std::vector<uint16_t> q = numbers(new_rows * group * kDim);
    std::vector<uint16_t> out(q.size(), 0x7fff);
    std::vector<float> lse(q.size() / kDim, NAN);
    const std::size_t bytes = static_cast<std::size_t>(kvb_decode_workspace_bytes(kDim, ctas));
    const std::size_t counters = static_cast<std::size_t>(kvb_decode_counter_bytes());
    std::vector<unsigned char> workspace(bytes, 0xff);
    std::fill(workspace.begin(), workspace.begin() + static_cast<std::ptrdiff_t>(counters), 0);
    const int64_t row = kDim, of_head = row * tokens, of_batch = of_head * kLanes, q_batch = of_batch * group;
    const kvb::Tensor4 of_k{k_new.data(), of_batch, of_head, row}, of_v{v_new.data(), of_batch, of_head, row};
    const kvb::RaggedAppend append{
        .k_new = of_k,
        .v_new = of_v,
        .k = k.data(),
        .v = v.data(),
        .start = start,
        .length = length,
        .segment = segment,
        .status = &status,
        .batch = 1,
        .kv_heads = kLanes,
        .tokens = tokens,
        .dim = kDim,
        .dtype = 0,
    };
    const kvb::RaggedDecode decode{
        .q = {q.data(), q_batch, of_head, row},
        .out = {out.data(), q_batch, of_head, row},
        .k_new = of_k,
        .v_new = of_v,
        .k = k.data(),
        .v = v.data(),
        .start = start,
        .length = length,
        .segment = segment,
        .lse = lse.data(),
        .workspace = workspace.data(),
        .status = &status,
        .scaling = 0.1f,
        .batch = 1,
        .kv_heads = kLanes,
        .group = group,
        .tokens = tokens,
        .dim = kDim,
        .ctas = ctas,
        .wide = equal,
        .dtype = 0,
        .settled = ctas % 2,
    };
    int code = kvb_ragged_append(&append, nullptr);
    if (fused)
        code |= kvb_ragged_append_decode(&decode, nullptr);
    else
        code |= kvb_ragged_append(&append, nullptr) | kvb_ragged_decode(&decode, nullptr);
    bool right = code == 0 && status == 0;
    for (const uint16_t x : out) right &= (x & 0x7f80) != 0x7f80;
    for (const float x : lse) right &= std::isfinite(x);
    for (std::size_t i = 0; i < counters; ++i) right &= workspace[i] == 0;
    return right;
}

}  // namespace

int main(int, char** arguments) {
    generator.seed(static_cast<unsigned>(std::atoi(arguments[1])));
    for (const int tokens : {1, 5})
        for (const int ctas : {1, 3, 40})
            for (const int kind : {0, 1, 2, 3})
                if (!run(tokens, draw(1, 18), ctas, kind % 2 == 1, kind / 2 == 1)) {
                    std::printf("wrong: %d tokens, %d CTAs, kind %d\n", tokens, ctas, kind);
                    return 1;
                }
    return 0;
}
