// Fibers: functions with their own stack that can be suspended and resumed. Only host builds use them.
//
// On x86-64 a switch takes a few instructions. Other processors use ucontext, which costs a system call;
// -DKVB_HOST_UCONTEXT selects it for tests. AddressSanitizer is told about every switch, so that its reports name the
// kernel's own frames and the stacks cause no false alarms.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__) && !defined(KVB_HOST_UCONTEXT)
#define KVB_HOST_UCONTEXT
#endif
#ifdef KVB_HOST_UCONTEXT
#include <ucontext.h>
#else
extern "C" void kvb_host_switch(void** save_sp, void* load_sp);
// Save the callee-saved registers on the old stack and load those of the new stack; `ret` continues there.
__asm__(
    ".text\n.weak kvb_host_switch\n.hidden kvb_host_switch\n.type kvb_host_switch,@function\nkvb_host_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size kvb_host_switch,.-kvb_host_switch\n");
#endif

// Hidden: two builds of the kernels loaded into one process must not share their state.
namespace kvb_host __attribute__((visibility("hidden"))) {

// The point where a fiber stopped, or its caller while fibers run.
struct Context {
#ifdef KVB_HOST_UCONTEXT
    ucontext_t registers;
#else
    void* sp = nullptr;
#endif
    void* fake_stack = nullptr;  // AddressSanitizer's, while this context is suspended
    const void* bottom = nullptr;
    std::size_t size = 0;
};

inline void raw_switch(Context& from, Context& to) {
#ifdef KVB_HOST_UCONTEXT
    swapcontext(&from.registers, &to.registers);
#else
    kvb_host_switch(&from.sp, to.sp);
#endif
}

// After a switch: tell the sanitizer that `here` runs again, and note the bounds of the previous stack in `came_from`.
inline void arrived(Context& here, Context* came_from) {
#ifdef __SANITIZE_ADDRESS__
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(here.fake_stack, &bottom, &size);
    if (came_from != nullptr) {
        came_from->bottom = bottom;
        came_from->size = size;
    }
#else
    (void)here;
    (void)came_from;
#endif
}

// Suspend `from` and resume `to`. It returns when another fiber switches back, whose stack bounds `note` receives.
inline void switch_context(Context& from, Context& to, Context* note) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
    raw_switch(from, to);
    arrived(from, note);
}

// A stack with a guard page below it, so that an overflow stops the program instead of corrupting a neighbour.
class Stack {
  public:
    static constexpr std::size_t kBytes = 256 * 1024;

    Stack() {
        guard_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        void* memory = mmap(nullptr, guard_ + kBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, guard_, PROT_NONE) != 0) {
            std::perror("kvb host shim: no memory for a stack");
            std::abort();
        }
        base_ = static_cast<char*>(memory);
    }
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    ~Stack() { munmap(base_, guard_ + kBytes); }

    // Make `context` start `entry` on this stack at its first switch. `entry` must never return.
    void prepare(Context& context, void (*entry)()) {
        char* bottom = base_ + guard_;
        context.bottom = bottom;
        context.size = kBytes;
#ifdef KVB_HOST_UCONTEXT
        getcontext(&context.registers);
        context.registers.uc_stack.ss_sp = bottom;
        context.registers.uc_stack.ss_size = kBytes;
        context.registers.uc_link = nullptr;
        makecontext(&context.registers, entry, 0);
#else
        void** top = reinterpret_cast<void**>(bottom + kBytes);
        *--top = nullptr;  // in place of a return address: the stack ends here, aligned to 16 bytes as at any call
        *--top = reinterpret_cast<void*>(entry);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        context.sp = top;
#endif
    }

  private:
    char* base_ = nullptr;
    std::size_t guard_ = 0;
};

}  // namespace kvb_host
