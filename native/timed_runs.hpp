// Timing something short again and again on a machine that does other things as well.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

namespace edged {

// Seconds of one `run(number)`, called for about `milliseconds`: the lower quartile of all, since another
// program interrupts some of them, and a lucky cache favours a few. So a run should be short.
template <typename Run>
double typical_seconds(int64_t milliseconds, Run run) {
    using Clock = std::chrono::steady_clock;
    using Seconds = std::chrono::duration<double>;
    constexpr size_t kLeast = 4;           // runs, on a machine too slow for more
    constexpr int kMostBudgets = 8;        // they may take so many times longer than asked for
    constexpr double kFinestClock = 1e-9;  // seconds

    const Seconds budget(static_cast<double>(milliseconds) / 1e3);
    std::vector<double> times;
    const auto begin = Clock::now();
    Seconds spent{0};
    while (spent < (times.size() < kLeast ? budget * kMostBudgets : budget)) {
        const auto start = Clock::now();
        run(times.size());
        times.push_back(Seconds(Clock::now() - start).count());
        spent = Clock::now() - begin;
    }
    const auto quartile = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 4);
    std::nth_element(times.begin(), quartile, times.end());
    return std::max(*quartile, kFinestClock);
}

}  // namespace edged
