// Plain reading of memory by several threads: the bound of all that is done once with each byte.
#include <algorithm>
#include <barrier>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "error.hpp"
#include "measure.hpp"
#include "timed_runs.hpp"

namespace edged {

namespace {

constexpr size_t kLanes = 16;           // sums side by side, so that adding does not hold up reading
constexpr int64_t kSmallest = 1 << 20;  // bytes per thread
constexpr int64_t kRound = 8 << 20;     // bytes of all threads together: short, so that few are interrupted

uint64_t sum(const uint64_t* from, size_t count) {
    uint64_t lanes[kLanes] = {};
    for (size_t i = 0; i + kLanes <= count; i += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += from[i + lane];
    }
    uint64_t total = 0;
    for (const uint64_t lane : lanes) total += lane;
    return total;
}

// Threads that each read the next piece of their slice in every round; the caller takes the rounds' time.
class Readers {
  public:
    Readers(size_t n_threads, size_t words_each, size_t pieces)
        : words_each_(words_each),
          piece_(words_each / pieces / kLanes * kLanes),
          memory_(new uint64_t[n_threads * words_each]),
          sums_(n_threads),
          gate_(static_cast<ptrdiff_t>(n_threads) + 1) {
        std::memset(memory_.get(), 1, n_threads * words_each * sizeof(uint64_t));
        try {
            for (size_t i = 0; i < n_threads; ++i) threads_.emplace_back([this, i] { read(i); });
        } catch (const std::system_error&) {
            for (size_t i = threads_.size(); i < n_threads; ++i) gate_.arrive_and_drop();
            stop();
            throw WindowFailure("the system gives no thread to measure with");
        }
    }

    ~Readers() { stop(); }

    size_t bytes_per_round() const { return sums_.size() * piece_ * sizeof(uint64_t); }

    void round() {
        gate_.arrive_and_wait();
        gate_.arrive_and_wait();
    }

  private:
    void read(size_t index) {
        for (size_t at = 0;; at = at + 2 * piece_ <= words_each_ ? at + piece_ : 0) {
            gate_.arrive_and_wait();
            if (stopping_) return;
            sums_[index] = sum(memory_.get() + index * words_each_ + at, piece_);
            gate_.arrive_and_wait();
        }
    }

    void stop() {
        if (threads_.empty()) return;
        stopping_ = true;
        gate_.arrive_and_wait();
        for (std::thread& thread : threads_) thread.join();
        threads_.clear();
    }

    const size_t words_each_;
    const size_t piece_;  // words
    std::unique_ptr<uint64_t[]> memory_;
    std::vector<uint64_t> sums_;  // written, so that the reading is not left out
    std::barrier<> gate_;
    bool stopping_ = false;  // changed only while everybody waits at the gate
    std::vector<std::thread> threads_;
};

}  // namespace

double read_bandwidth(int64_t n_threads, int64_t milliseconds, int64_t memory) {
    if (n_threads < 1 || n_threads > 512) {
        throw WindowFailure("cannot measure with " + std::to_string(n_threads) + " threads");
    }
    if (milliseconds < 1 || milliseconds > 60'000) throw WindowFailure("measure for 1 to 60000 ms");
    const int64_t bytes_each = std::max(kSmallest, memory / n_threads);
    const auto words_each = static_cast<size_t>(bytes_each) / sizeof(uint64_t) / kLanes * kLanes;
    const auto pieces = static_cast<size_t>(std::max<int64_t>(1, bytes_each * n_threads / kRound));
    Readers readers(static_cast<size_t>(n_threads), words_each, pieces);
    readers.round();  // wakes the threads
    const double seconds = typical_seconds(milliseconds, [&](size_t) { readers.round(); });
    return static_cast<double>(readers.bytes_per_round()) / seconds;
}

}  // namespace edged
