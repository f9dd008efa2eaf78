// How fast this machine's CPU runs the two products that a model consists of.
#pragma once

#include <cstdint>

namespace edged {

struct Speed {
    double bandwidth = 0;  // bytes of weights per second, matrix times vector
    double flops = 0;      // multiply-adds x 2 per second, matrix times matrix
};

// Takes about `milliseconds` and a short set-up, and up to `memory` bytes of weights, but some at least;
// throws WindowFailure if ggml refuses.
Speed measure(int64_t n_threads, int64_t milliseconds, int64_t memory);

}  // namespace edged
