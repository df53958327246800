// What the Metal kernels use of Metal, in C++: one fiber per thread of a threadgroup, in a chosen order.
//
// Threads run until they wait at a barrier or a SIMD-group operation. A barrier opens when every thread of the
// threadgroup waits at it, an operation when every lane of its SIMD group does; anything else is divergence, an error
// here and undefined on a GPU. Between two waits a thread runs alone, so a race shows as a result that depends on
// the order. Address spaces and attributes have no meaning in C++.

#include <stdint.h>
#include <ucontext.h>

#define device
#define constant
#define kernel
#define threadgroup static

typedef unsigned int uint;
struct uint3 {
  uint x, y, z;
};
enum class mem_flags { mem_threadgroup };

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}

namespace shim {

constexpr uint LANES = 32, MOST = 1024, STACK = 1 << 16;
enum State { READY, AT_BARRIER, AT_SUM, DONE };

struct Thread {
  ucontext_t context;
  State state;
  uint index;
  uint3 position;
  float value;
};

static Thread threads[MOST];
static char stacks[MOST][STACK];
static ucontext_t scheduler;
static Thread* current;
static uint3 group, threads_per_group;
static void (*body)();

inline void wait(State state) {
  current->state = state;
  swapcontext(&current->context, &scheduler);
}

inline void enter() {
  body();
  current->state = DONE;
}

// Opens what can be opened among count threads; false if nothing can.
inline bool release(uint count) {
  bool any = false, barrier = true;
  for (uint base = 0; base < count; base += LANES) {
    const uint top = min(base + LANES, count);
    bool together = true;
    float sum = 0;
    for (uint i = base; i < top; ++i) {
      together = together && threads[i].state == AT_SUM;
      barrier = barrier && threads[i].state == AT_BARRIER;
      sum += threads[i].value;
    }
    for (uint i = base; together && i < top; ++i) {
      threads[i].value = sum;
      threads[i].state = READY;
      any = true;
    }
  }
  for (uint i = 0; barrier && i < count; ++i) {
    threads[i].state = READY;
    any = true;
  }
  return any;
}

// One threadgroup; order is a permutation of its threads. False if threads diverge.
inline bool run_group(const uint* order) {
  const uint count = threads_per_group.x * threads_per_group.y * threads_per_group.z;
  for (uint i = 0; i < count; ++i) {
    Thread& t = threads[i];
    t.state = READY;
    t.index = i;
    t.position = {i % threads_per_group.x, i / threads_per_group.x % threads_per_group.y,
                  i / threads_per_group.x / threads_per_group.y};
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = stacks[i];
    t.context.uc_stack.ss_size = STACK;
    t.context.uc_link = &scheduler;
    makecontext(&t.context, enter, 0);
  }
  for (;;) {
    uint done = 0;
    for (uint i = 0; i < count; ++i) {
      current = &threads[order[i]];
      while (current->state == READY) {
        swapcontext(&scheduler, &current->context);
      }
      done += current->state == DONE;
    }
    if (done == count) {
      return true;
    }
    if (!release(count)) {
      return false;
    }
  }
}

}  // namespace shim

inline void threadgroup_barrier(mem_flags) { shim::wait(shim::AT_BARRIER); }

inline float simd_sum(float value) {
  shim::current->value = value;
  shim::wait(shim::AT_SUM);
  return shim::current->value;
}
