// Runs the CUDA threads of a launch as fibers; see simt_host.h. Compiled without
// -fsanitize=thread (and with SIMT_TSAN) for the thread sanitizer, which is told of fibers and of
// the edges that barriers, launches and fences make, and sees the kernels' accesses alone.
#undef _FORTIFY_SOURCE  // whose longjmp refuses to leave for another stack (context.h)

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "async_copies.h"
#include "context.h"
#include "simt_host.h"

#ifdef SIMT_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#define TSAN(...) __VA_ARGS__
#else
#define TSAN(...)
#endif

namespace simt {

Thread current;
int order = 0;

namespace {

enum class State : uint8_t { ready, at_barrier, at_collective, done };

struct Fiber {
  Context context;
  State state;
  int barrier;
  unsigned threads;  // that the barrier waits for
  const char* where;
  Thread thread;
  AsyncCopies copies;
};

// A warp has two sets of deposits: a lane may be at its next collective while others still read.
struct Warp {
  unsigned char deposits[2][32 * kDeposit];
  uint8_t phase[32];
  unsigned arrived, live;
};

constexpr size_t kStack = 256 << 10;
constexpr int kBarriers = 16;
// Bytes behind the shared memory that nobody may write; the address sanitizer has its own.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuard = 0;
#else
constexpr size_t kGuard = 64;
#endif
constexpr unsigned char kGuardByte = 0xA5;

// Blocks run one after the other, and the thread sanitizer is not to take them for ordered:
// neighbours in any direction of the grid are of two sets, between which only fences make edges.
// The blocks of one set are ordered, for they share fibers, stacks and shared memory.
struct Set {
  std::vector<Fiber> fibers;
  std::vector<std::unique_ptr<char[]>> stacks;
  unsigned char* shared;
  // A barrier's uses take turns with two tokens: at one and the same, a warp that is still at a
  // barrier would acquire what another one did behind it, up to its next use.
  TSAN(std::vector<void*> sanitizers; char barriers[kBarriers][2], warps[32], exits;)
};

Set sets[2];
Set* set = sets;  // of the running block
std::vector<Warp> warps;
Context main_context;
unsigned running;  // the fiber
void (*body)(void*);
void* argument;
unsigned at_barrier[kBarriers];
bool turn[kBarriers];  // which token, flipped when the barrier opens
int votes;

TSAN(void* main_fiber; char launch_token, fence_token;)

void yield() {
  Fiber& f = set->fibers[running];
  TSAN(__tsan_switch_to_fiber(main_fiber, 1);)
  f.context.leave_for(main_context);
  current = f.thread;
}

void resume(unsigned i) {
  running = i;
  current = set->fibers[i].thread;
  TSAN(__tsan_switch_to_fiber(set->sanitizers[i], 1);)
  main_context.leave_for(set->fibers[i].context);
}

void enter() {
  current = set->fibers[running].thread;
  TSAN(__tsan_acquire(&launch_token); __tsan_acquire(&set->exits);)
  body(argument);
  Fiber& f = set->fibers[running];
  if (f.copies.pending()) die("a thread exits with cp.async copies that it has not waited for");
  f.state = State::done;
  warps[running / 32].live &= ~(1u << (running & 31));
  TSAN(__tsan_release(&set->exits);)
  yield();
}

unsigned threads_of(dim3 d) { return d.x * d.y * d.z; }

void prepare(unsigned i, dim3 block, dim3 at, dim3 grid) {
  Fiber& f = set->fibers[i];
  f.state = State::ready, f.where = "";
  const dim3 thread(i % block.x, i / block.x % block.y, i / (block.x * block.y));
  f.thread = {thread, at, block, grid, i, set->shared};
  f.context.begin(enter, set->stacks[i].get(), kStack);
  TSAN(if (set->sanitizers.size() <= i) set->sanitizers.push_back(__tsan_create_fiber(0));)
}

// Opens what barriers can be opened; false if there are none.
bool open_barriers(unsigned threads) {
  bool opened = false;
  for (int id = 0; id < kBarriers; ++id) {
    if (at_barrier[id] == 0) continue;
    unsigned needed = threads;
    for (const Fiber& f : set->fibers) {
      if (f.state == State::at_barrier && f.barrier == id && f.threads > 0) needed = f.threads;
    }
    if (at_barrier[id] < needed) continue;
    for (Fiber& f : set->fibers) {
      if (f.state == State::at_barrier && f.barrier == id) f.state = State::ready;
    }
    at_barrier[id] = 0, turn[id] = !turn[id], opened = true;
  }
  return opened;
}

// Runs the warp of fiber i until none of its lanes can go on.
void run_warp(unsigned i) {
  const unsigned first = i / 32 * 32, end = std::min<unsigned>(first + 32, set->fibers.size());
  for (bool more = true; more;) {
    more = false;
    for (unsigned j = first; j < end; ++j) {
      const unsigned k = order % 2 ? first + end - 1 - j : j;
      if (set->fibers[k].state == State::ready) resume(k), more = true;
    }
  }
}

void run_block(std::vector<unsigned>& turns, std::mt19937& random) {
  for (;;) {
    bool ran = false;
    if (order >= 4) std::shuffle(turns.begin(), turns.end(), random);
    for (const unsigned i : turns) {
      if (set->fibers[i].state != State::ready) continue;
      resume(i), ran = true;
      if (order >= 2) run_warp(i);
    }
    if (ran) continue;
    const bool done = std::all_of(set->fibers.begin(), set->fibers.end(),
                                  [](const Fiber& f) { return f.state == State::done; });
    if (done) return;
    if (!open_barriers(set->fibers.size())) {
      die("deadlock: a barrier that not all reach, or half of a warp at a collective");
    }
  }
}

}  // namespace

void die(const char* why) {
  std::fprintf(stderr, "SIMT: %s; block (%u, %u, %u), thread %u\n", why, current.block.x,
               current.block.y, current.block.z, current.linear);
  for (size_t w = 0; w * 32 < set->fibers.size(); ++w) {
    const Fiber& f = set->fibers[w * 32];
    const char* states[] = {"ready", "at a barrier", "at a collective", "done"};
    std::fprintf(stderr, "  warp %zu, lane 0: %s %s\n", w, states[int(f.state)], f.where);
  }
  std::abort();
}

void block_barrier(int id, unsigned threads, const char* where) {
  Fiber& f = set->fibers[running];
  f.state = State::at_barrier, f.barrier = id, f.threads = threads, f.where = where;
  ++at_barrier[id];
  TSAN(char* const token = &set->barriers[id][turn[id]]; __tsan_release(token);)
  yield();
  TSAN(__tsan_acquire(token);)
}

int block_vote(int vote, const char* where) {
  block_barrier(0, 0, where);
  votes = 0;
  block_barrier(0, 0, where);
  votes |= vote != 0;
  block_barrier(0, 0, where);
  return votes;
}

const unsigned char* exchange(const void* value, size_t size, unsigned mask, const char* where) {
  const unsigned me = running, lane = me & 31;
  Warp& warp = warps[me / 32];
  unsigned char* deposits = warp.deposits[warp.phase[lane]++ & 1];
  if (!(mask >> lane & 1)) die("a lane is at a collective whose mask does not name it");
  if (mask & ~warp.live) die("a collective's mask names lanes that have exited");
  for (size_t i = 0; i < size; ++i) {
    deposits[lane * kDeposit + i] = static_cast<const volatile unsigned char*>(value)[i];
  }
  set->fibers[me].state = State::at_collective, set->fibers[me].where = where;
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) == mask) {
    for (unsigned l = 0; l < 32; ++l) {
      if (mask >> l & 1) set->fibers[me / 32 * 32 + l].state = State::ready;
    }
    warp.arrived &= ~mask;
  }
  yield();
  return deposits;
}

void warp_barrier(const char* where) {
  const unsigned warp = running / 32;
  TSAN(__tsan_release(&set->warps[warp]);)
  exchange(&warp, sizeof warp, warps[warp].live, where);
  TSAN(__tsan_acquire(&set->warps[warp]);)
}

void copy_later(void* to, const void* from, size_t size, size_t bytes) {
  set->fibers[running].copies.later(to, from, size, bytes);
}
void close_copy_group() { set->fibers[running].copies.close_group(); }
void wait_for_copies(int groups_left) { set->fibers[running].copies.wait(groups_left); }

void fence() {
  TSAN(__tsan_release(&fence_token);)
  TSAN(__tsan_acquire(&fence_token);)
}

unsigned atomic_add(unsigned* p, unsigned v) {
  const unsigned old = *p;
  *p = old + v;
  return old;
}

cudaError_t run(void (*kernel)(void*), void* kernel_argument, dim3 grid, dim3 block,
                size_t shared_bytes) {
  const unsigned threads = threads_of(block), blocks = threads_of(grid);
  if (threads == 0 || threads > 1024 || blocks == 0 || grid.y > 65535 || grid.z > 65535 ||
      grid.x > 0x7fffffffu || shared_bytes > kMostShared) {
    return cudaErrorInvalidConfiguration;
  }
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  body = kernel, argument = kernel_argument;
  warps.resize((threads + 31) / 32);
  std::mt19937 random(order);
  std::vector<unsigned> turns(threads);
  for (unsigned i = 0; i < threads; ++i) turns[i] = order % 2 ? threads - 1 - i : i;
  for (Set& s : sets) {
    s.fibers.resize(threads);
    while (s.stacks.size() < threads) s.stacks.emplace_back(new char[kStack]);
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, std::max<size_t>(1, shared_bytes + kGuard)) != 0)
      std::abort();
    s.shared = static_cast<unsigned char*>(memory);
  }
  TSAN(main_fiber = __tsan_get_current_fiber(); __tsan_release(&launch_token);)
  for (unsigned b = 0; b < blocks; ++b) {
    const unsigned at = order % 2 ? blocks - 1 - b : b;
    const dim3 place(at % grid.x, at / grid.x % grid.y, at / (grid.x * grid.y));
    set = &sets[(place.x + place.y + place.z) % 2];
    // Volatile, so that no memset is made of it, here and below: the thread sanitizer would take
    // that for a write of the main fiber, which does not wait for the set's earlier block.
    auto* shared = static_cast<volatile unsigned char*>(set->shared);
    for (size_t i = 0; i < shared_bytes + kGuard; ++i) {
      shared[i] = i < shared_bytes ? 0xFF : kGuardByte;
    }
    std::fill(at_barrier, at_barrier + kBarriers, 0u);
    for (size_t w = 0; w < warps.size(); ++w) {
      const unsigned lanes = std::min<unsigned>(32, threads - w * 32);
      for (auto& phase : warps[w].phase) phase = 0;
      warps[w].arrived = 0;
      warps[w].live = lanes == 32 ? ~0u : (1u << lanes) - 1;
    }
    for (unsigned i = 0; i < threads; ++i) prepare(i, block, place, grid);
    run_block(turns, random);
    for (size_t i = 0; i < kGuard; ++i) {
      if (shared[shared_bytes + i] != kGuardByte) die("a write behind the shared memory");
    }
  }
  for (Set& s : sets) {
    TSAN(__tsan_acquire(&s.exits);)
    std::free(s.shared);
  }
  return cudaSuccess;
}

}  // namespace simt
