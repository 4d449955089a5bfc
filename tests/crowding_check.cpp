// Crowding and Barrier without torch or Python: what test_parallel.py compiles and runs. Returns
// the number of expectations that failed, each in a line.
#include <cstdio>
#include <thread>
#include <vector>

#include "../csrc/bindings/barrier.h"
#include "../csrc/bindings/crowding.h"
#include "../csrc/step/partition.h"

using mlp_ext::Barrier;
using mlp_ext::Crowding;
using namespace std::chrono_literals;

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  ++failures;
}

// A caller whose clock goes by what it does.
struct Caller {
  Crowding crowding;
  Crowding::Clock::time_point time{};
  int clock_readings = 0, members = 2;

  bool alone() {
    return crowding.alone([&] {
      ++clock_readings;
      return time;
    });
  }
  void region(Crowding::Clock::duration work, Crowding::Clock::duration of_caller,
              Crowding::Clock::duration longest) {
    const auto begin = time;
    time += work + of_caller;
    crowding.learn(begin, time, members, of_caller, longest);
  }
  // How long it stays alone.
  Crowding::Clock::duration pause() {
    const auto begin = time;
    while (alone()) time += 1ms;
    return time - begin;
  }
};

void a_quiet_machine() {
  Caller caller;
  for (int i = 0; i < 100; ++i) {
    expect(!caller.alone(), "alone for no reason");
    caller.region(50us, 20us, 20us);
    caller.region(10ms, 2ms, 2ms);  // a member whose part is larger
  }
  expect(caller.clock_readings == 0, "the clock was read on a quiet machine");
}

// What one thread would take is told by the caller's part.
void members_that_have_to_be_woken() {
  Caller caller;
  for (int i = 0; i < 10; ++i) {
    caller.time += 20ms;
    caller.region(50us, 900us, 900us);
    expect(!caller.alone(), "waking up was taken for crowding");
  }
  caller.time += 20ms;
  caller.region(50us, 3ms, 3ms);
  expect(caller.alone(), "a slice of the scheduler was taken for waking up");
}

void the_caller_has_the_largest_part() {
  for (int64_t n = 1; n < 200; ++n) {
    for (const int64_t unit : {1, 16, 64}) {
      for (int64_t parts = 1; parts <= 20; ++parts) {
        const int64_t first = mlp_ext::step::part_of(n, unit, parts, 0).size();
        int64_t sum = 0;
        for (int64_t i = 0; i < parts; ++i) {
          const int64_t size = mlp_ext::step::part_of(n, unit, parts, i).size();
          expect(size <= first, "another part is larger than the caller's");
          sum += size;
        }
        expect(sum == n, "the parts are not the whole");
      }
    }
  }
}

void a_large_team() {
  Caller caller;
  caller.members = 64;
  caller.region(1ms, 4ms, 4ms);  // one of them was late, and alone it would take 64 ms
  expect(!caller.alone(), "alone where that is slower");
}

void pauses_grow_and_are_forgotten() {
  Caller caller;
  caller.region(50us, 3ms, 3ms);
  const auto first = caller.pause();
  expect(first >= 4ms && first <= 5ms, "the first pause is 4 ms");
  for (int i = 0; i < 20; ++i) {
    caller.region(50us, 0us, 3ms);  // another member waited
    caller.pause();
  }
  caller.region(50us, 3ms, 3ms);
  const auto longest = caller.pause();
  expect(longest >= 1s && longest <= 1001ms, "no pause is longer than a second");
  for (int i = 0; i < 60; ++i) {
    expect(!caller.alone(), "alone though regions go well");
    caller.region(1ms, 0us, 0us);
  }
  caller.region(50us, 400us, 400us);
  expect(caller.pause() <= 5ms, "long pauses are forgotten when all goes well");
}

void all_members_come(int members) {
  constexpr int kTurns = 200;
  Barrier barrier;
  std::vector<int> turns(members, 0);
  std::vector<std::thread> threads;
  for (int member = 0; member < members; ++member) {
    threads.emplace_back([&, member] {
      for (int turn = 0; turn < kTurns; ++turn) {
        if (member == 0 && turn % 50 == 0) std::this_thread::sleep_for(5ms);  // past spins, yields
        ++turns[member];
        barrier.wait(members);
        for (const int other : turns) expect(other == turn + 1, "a member went on alone");
        barrier.wait(members);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  a_quiet_machine();
  the_caller_has_the_largest_part();
  a_large_team();
  members_that_have_to_be_woken();
  pauses_grow_and_are_forgotten();
  all_members_come(2);
  all_members_come(5);
  return failures;
}
