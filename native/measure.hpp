// How fast a ggml device runs the two products that a model consists of, per type of weights.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpp.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

namespace edged {

struct Speed {
    double bandwidth = 0;  // bytes of weights per second, matrix times vector
    double flops = 0;      // multiply-adds x 2 per second, matrix times matrix
};

struct ProductOptions {
    int type = 0;              // of the weights, as ggml numbers them
    bool repack = true;        // into the layout that llama.cpp gives to weights that it holds in memory
    int64_t batch = 1;         // tokens in the matrix-matrix product
    int64_t milliseconds = 0;  // for both products, set-up aside
    int64_t memory = 0;        // bytes of weights, at most; but some at least
};

// One ggml device, ready to compute. All methods throw WindowFailure.
class Meter {
  public:
    // `device` is a name from devices(); the threads are the CPU's.
    Meter(const std::string& device, int64_t n_threads);

    // Nothing where the device cannot multiply such weights.
    std::optional<Speed> products(const ProductOptions& options);

    // Multiply-adds x 2 per second with which `n_tokens` tokens attend to a cache of `depth` positions in
    // f16, without flash attention. Nothing where the device cannot do that.
    std::optional<double> attention(int64_t n_tokens, int64_t depth, int64_t milliseconds);

  private:
    std::mutex lock_;
    ggml_backend_ptr backend_;
};

// Bytes per second that `n_threads` of the CPU read from `memory` bytes together.
double read_bandwidth(int64_t n_threads, int64_t milliseconds, int64_t memory);

}  // namespace edged
