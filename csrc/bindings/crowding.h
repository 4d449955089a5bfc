// Whether the threads of a region find cores to run on. Where other programs keep the cores busy,
// each barrier waits until the scheduler lets the other member run, milliseconds for microseconds
// of work: two processes of two threads each on two cores ran at 1/24 of one. A region's tasks then
// run one after the other on the caller (the same tasks, so the same bits), for a while; then it is
// tried again. Each calling thread keeps its own account, as its own team.
#pragma once

#include <algorithm>
#include <chrono>
#include <utility>

namespace mlp_ext {

class Crowding {
 public:
  using Clock = std::chrono::steady_clock;

  // Whether to stay alone at the time that now() gives; it is not called while regions go well.
  template <class Now>
  bool alone(const Now& now) {
    return alone_ = alone_ && now() < until_;
  }

  // Of a region that `members` ran from `begin` to `end`: how long they waited in vain, at its
  // barriers and at its end. The caller's part of that is `of_caller`, any member's `longest`.
  // Alone the caller would have taken about `members` times what it worked.
  void learn(Clock::time_point begin, Clock::time_point end, int members, Clock::duration of_caller,
             Clock::duration longest) {
    const bool slept = begin - std::exchange(last_end_, end) > kAwake;
    const auto worked = end - begin - of_caller;
    if (longest > (slept ? kLateFromSleep : kLate) && longest > (members - 1) * worked) {
      pause_ = std::clamp(2 * pause_, kFirstPause, kLongestPause);
      until_ = end + pause_;
      alone_ = true;
    } else if (end - until_ > kWell) {
      pause_ = kNone;
    }
  }

 private:
  static constexpr Clock::duration kNone{0};
  // Members that run come within microseconds of each other. One that sleeps has to be woken, and
  // perhaps its core, which took up to a millisecond on a virtual machine (taken for crowding, that
  // kept teams from coming back after a pause). A scheduler's slice takes 3 ms or more.
  static constexpr Clock::duration kLate = std::chrono::microseconds(300);
  static constexpr Clock::duration kLateFromSleep = std::chrono::microseconds(1500);
  static constexpr Clock::duration kAwake = std::chrono::milliseconds(3);  // libgomp's threads spin
  static constexpr Clock::duration kFirstPause = std::chrono::milliseconds(4);
  static constexpr Clock::duration kLongestPause = std::chrono::seconds(1);
  // Between threads that share cores it never goes well for as long. On a quiet machine it may not
  // go well for a second: something else runs now and then.
  static constexpr Clock::duration kWell = std::chrono::milliseconds(50);

  Clock::duration pause_ = kNone;
  Clock::time_point until_{};     // of the present or the last pause
  Clock::time_point last_end_{};  // of a region of the team
  bool alone_ = false;
};

}  // namespace mlp_ext
