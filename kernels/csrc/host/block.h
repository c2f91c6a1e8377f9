// Thread blocks on the host: one fiber per CUDA thread, barriers, warp-wide operations, shared memory, launches.
//
// Blocks run one after another; threads switch only at barriers and warp operations. The emulator stops the program if
// not all threads reach a barrier or warp operation, if lanes meet in different operations, if a lane shuffles from an
// absent lane, or if a launch or its shared memory exceeds the limits. Shared memory is filled with NaN (-1 as an
// integer) before each block. Memory ordering between blocks, and blocks that wait for one another, are not emulated.
//
// Environment variables: KVB_HOST_SHUFFLE=<seed> runs threads in random order, KVB_HOST_SHUFFLE_BLOCKS=<seed> blocks.
#pragma once
#include <algorithm>
#include <cstdarg>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>
#include "host/fiber.h"

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace kvb_host __attribute__((visibility("hidden"))) {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStaticShared = 48 * 1024, kAllShared = 227 * 1024;

// A lane's inputs and outputs of a warp operation.
struct Lane {
    uint32_t in[10] = {};
    uint32_t out[4] = {};
};
using Collective = void (*)(Lane* const* warp, unsigned lanes);  // absent lanes are null

enum class State { ready, at_block_barrier, at_warp_operation, done };

struct Thread {
    Context context;
    std::unique_ptr<Stack> stack;
    State state = State::done;
    unsigned linear = 0;
    uint3 index{};
    Collective collective = nullptr;  // the warp operation that it waits in
    unsigned mask = 0;                // the lanes in that operation
    Lane lane;
    int predicate = 0;  // input of __syncthreads_count and the like
};

struct Shared {
    const void* site;  // identifies a declaration
    std::unique_ptr<unsigned char, void (*)(void*)> memory;
};

struct Block {
    std::vector<std::unique_ptr<Thread>> pool;
    std::vector<Thread*> ready;
    std::size_t ready_head = 0;
    Context caller;
    Thread* current = nullptr;
    std::function<void()> kernel;
    dim3 grid, size;
    uint3 index{};
    unsigned threads = 0, alive = 0, at_barrier = 0;
    int barrier_sum = 0, barrier_alive = 0;
    std::vector<Shared> shared;
    std::size_t static_bytes = 0, dynamic_bytes = 0;
    bool shuffle = false;
    std::mt19937 random;
};
inline Block block;
inline std::mutex launching;

[[noreturn]] inline void fail(const char* format, ...) {
    std::fprintf(stderr, "kvb host shim: ");
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (block.current != nullptr)
        std::fprintf(stderr, " [block (%u,%u,%u), thread (%u,%u,%u)]", block.index.x, block.index.y, block.index.z,
                     block.current->index.x, block.current->index.y, block.current->index.z);
    std::fprintf(stderr, "\n");
    std::abort();
}

inline void check_aligned(const void* address, std::size_t bytes, const char* what) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
        fail("misaligned %s: address %p, %zu bytes", what, address, bytes);
}

inline void make_ready(Thread& thread) {
    thread.state = State::ready;
    if (&thread != block.current) block.ready.push_back(&thread);
}

// Stop the current thread until another thread makes it ready.
inline void wait() { switch_context(block.current->context, block.caller, &block.caller); }

inline void open_barrier_if_complete() {
    if (block.alive == 0 || block.at_barrier < block.alive) return;
    block.at_barrier = block.barrier_sum = 0;
    block.barrier_alive = static_cast<int>(block.alive);
    for (unsigned i = 0; i < block.threads; ++i)
        if (block.pool[i]->state == State::at_block_barrier) {
            block.barrier_sum += block.pool[i]->predicate;
            make_ready(*block.pool[i]);
        }
}

// Returns how many threads arrived with a predicate that is not zero.
inline int block_barrier(int predicate) {
    Thread& me = *block.current;
    me.predicate = predicate != 0;
    me.state = State::at_block_barrier;
    ++block.at_barrier;
    open_barrier_if_complete();
    if (me.state != State::ready) wait();
    return block.barrier_sum;
}

inline void finish_warp_if_complete(Thread& any) {
    const unsigned first = any.linear / kWarp * kWarp;
    Lane* warp[kWarp] = {};
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < kWarp && first + lane < block.threads; ++lane) {
        Thread& other = *block.pool[first + lane];
        if ((any.mask >> lane & 1) == 0 || other.state == State::done) continue;
        if (other.state != State::at_warp_operation || other.mask != any.mask) return;
        if (other.collective != any.collective)
            fail("lanes of a warp meet in different operations (threads %u and %u)", any.linear, other.linear);
        warp[lane] = &other.lane;
        lanes |= 1u << lane;
    }
    any.collective(warp, lanes);
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (warp[lane] != nullptr) make_ready(*block.pool[first + lane]);
}

// Wait for the lanes of `mask`. The last to arrive computes `collective` for all, from their `lane.in`.
inline const uint32_t* meet(unsigned mask, Collective collective) {
    Thread& me = *block.current;
    if ((mask >> (me.linear % kWarp) & 1) == 0) fail("a lane is not in the mask %#x of its warp operation", mask);
    me.collective = collective;
    me.mask = mask;
    me.state = State::at_warp_operation;
    finish_warp_if_complete(me);
    if (me.state != State::ready) wait();
    return me.lane.out;
}

// The main function of every fiber: it runs the kernel once per block, forever.
inline void fiber_main() {
    arrived(block.current->context, &block.caller);
    for (;;) {
        block.kernel();
        Thread& me = *block.current;
        me.state = State::done;
        --block.alive;
        open_barrier_if_complete();  // no thread waits for threads that have ended
        const unsigned first = me.linear / kWarp * kWarp;
        for (unsigned i = first; i < std::min(first + kWarp, block.threads); ++i)
            if (block.pool[i]->state == State::at_warp_operation) finish_warp_if_complete(*block.pool[i]);
        wait();
    }
}

[[noreturn]] inline void report_deadlock() {
    unsigned barrier = 0, warp = 0;
    const Thread* example = nullptr;
    for (unsigned i = 0; i < block.threads; ++i) {
        const Thread& thread = *block.pool[i];
        barrier += thread.state == State::at_block_barrier;
        warp += thread.state == State::at_warp_operation;
        if (thread.state == State::at_warp_operation && example == nullptr) example = &thread;
    }
    block.current = nullptr;
    std::fprintf(stderr, "kvb host shim: block (%u,%u,%u): ", block.index.x, block.index.y, block.index.z);
    if (example != nullptr) std::fprintf(stderr, "thread %u waits for lanes %#x; ", example->linear, example->mask);
    fail("deadlock: %u threads wait at a block barrier, %u in a warp operation, %u have ended", barrier, warp,
         block.threads - block.alive);
}

inline Thread* next_ready() {
    if (block.shuffle) {
        std::swap(block.ready[block.random() % block.ready.size()], block.ready.back());
        Thread* thread = block.ready.back();
        block.ready.pop_back();
        return thread;
    }
    Thread* thread = block.ready[block.ready_head++];
    if (block.ready_head == block.ready.size()) {
        block.ready.clear();
        block.ready_head = 0;
    }
    return thread;
}

inline void run_block() {
    block.shared.clear();
    block.static_bytes = 0;
    block.current = nullptr;
    block.alive = block.threads;
    block.at_barrier = 0;
    for (unsigned i = 0; i < block.threads; ++i) {
        Thread& thread = *block.pool[i];
        thread.index = {i % block.size.x, i / block.size.x % block.size.y, i / block.size.x / block.size.y};
        make_ready(thread);
    }
    while (!block.ready.empty()) {
        block.current = next_ready();
        switch_context(block.caller, block.current->context, nullptr);
    }
    if (block.alive != 0) report_deadlock();
    block.current = nullptr;
}

// Shared memory of one declaration (`site`), the same for all threads of the block; poisoned at the first request.
inline void* shared_memory(const void* site, std::size_t bytes, bool dynamic) {
    for (Shared& known : block.shared)
        if (known.site == site) return known.memory.get();
    if (!dynamic) block.static_bytes += bytes;
    if (block.static_bytes > kStaticShared || block.static_bytes + block.dynamic_bytes > kAllShared)
        fail("%zu static and %zu dynamic bytes of shared memory", block.static_bytes, block.dynamic_bytes);
    void* memory = nullptr;  // a separate allocation, so that the sanitizer knows where it ends
    if (posix_memalign(&memory, 128, std::max<std::size_t>(bytes, 1)) != 0) fail("no memory");
    std::memset(memory, 0xff, bytes);
    block.shared.push_back({site, {static_cast<unsigned char*>(memory), std::free}});
    return memory;
}

inline void launch(dim3 grid, dim3 size, std::size_t dynamic_bytes, std::function<void()> kernel) {
    const std::lock_guard<std::mutex> lock(launching);
    const std::size_t threads = std::size_t{1} * size.x * size.y * size.z;
    const std::size_t blocks = std::size_t{1} * grid.x * grid.y * grid.z;
    if (threads == 0 || threads > 1024 || blocks == 0 || grid.y > 65535 || grid.z > 65535)
        fail("impossible launch: grid (%u,%u,%u), block (%u,%u,%u)", grid.x, grid.y, grid.z, size.x, size.y, size.z);
    block.grid = grid;
    block.size = size;
    block.threads = static_cast<unsigned>(threads);
    block.dynamic_bytes = dynamic_bytes;
    block.kernel = std::move(kernel);
    while (block.pool.size() < threads) {
        auto thread = std::make_unique<Thread>();
        thread->stack = std::make_unique<Stack>();
        thread->stack->prepare(thread->context, fiber_main);
        thread->linear = static_cast<unsigned>(block.pool.size());
        block.pool.push_back(std::move(thread));
    }
    const char* seed = std::getenv("KVB_HOST_SHUFFLE");
    block.shuffle = seed != nullptr;
    if (seed != nullptr) block.random.seed(static_cast<unsigned>(std::atoi(seed)));
    std::vector<std::size_t> order(blocks);
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (const char* block_seed = std::getenv("KVB_HOST_SHUFFLE_BLOCKS"); block_seed != nullptr)
        std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(std::atoi(block_seed))));
    for (const std::size_t i : order) {
        block.index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                       static_cast<unsigned>(i / grid.x / grid.y)};
        run_block();
    }
    block.kernel = nullptr;
    block.shared.clear();
}

}  // namespace kvb_host
