#include "measure.hpp"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "error.hpp"
#include "llama_log.hpp"

namespace edged {

namespace {

constexpr ggml_type kWeightType =
    GGML_TYPE_Q4_0;                         // the commonest 4-bit layout, repacked by ggml where it can
constexpr int64_t kColumns = 2048;          // as wide as a small model's state
constexpr int64_t kRows = 2048;             // of one block of weights
constexpr int64_t kBatch = 32;              // tokens in the matrix-matrix product: a chunk of the ring, and a
                                            // run so short that another program seldom interrupts it
constexpr int64_t kMostWeights = 64 << 20;  // bytes; more than most caches hold, and quickly made

using Clock = std::chrono::steady_clock;

// The buffer type that llama.cpp would put such weights into: repacked where the CPU has kernels for it.
ggml_backend_buffer_type_t weights_buffer_type(ggml_backend_dev_t cpu, ggml_tensor* product,
                                               ggml_tensor* weights) {
    auto* extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
    ggml_backend_buffer_type_t* type = extra == nullptr ? nullptr : extra(cpu);
    for (; type != nullptr && *type != nullptr; ++type) {
        const ggml_backend_buffer_ptr probe(ggml_backend_buft_alloc_buffer(*type, 0));
        weights->buffer = probe.get();
        const bool supported = probe != nullptr && ggml_backend_dev_supports_op(cpu, product);
        weights->buffer = nullptr;
        if (supported) return *type;
    }
    return ggml_backend_dev_buffer_type(cpu);
}

// Products W x of `blocks` matrices W, each of kRows x kColumns weights, with one x of `batch` columns.
// Weights are in blocks, as a model's are: a repacking buffer takes a tensor only as a whole, and so the copy
// that it is filled from need be no larger than one block.
class Products {
  public:
    Products(ggml_backend_t backend, int64_t blocks, int64_t batch) : backend_(backend) {
        const auto tensors = static_cast<size_t>(blocks);
        const ggml_init_params params{ggml_tensor_overhead() * (tensors + 2) + graph_overhead(tensors),
                                      nullptr, true};
        weight_context_.reset(ggml_init(params));
        graph_context_.reset(ggml_init(params));
        if (!weight_context_ || !graph_context_) throw WindowFailure("no memory to measure with");
        ggml_tensor* input = ggml_new_tensor_2d(graph_context_.get(), GGML_TYPE_F32, kColumns, batch);
        graph_ = ggml_new_graph_custom(graph_context_.get(), nodes(tensors), false);
        ggml_tensor* product = nullptr;
        for (int64_t i = 0; i < blocks; ++i) {
            weights_.push_back(ggml_new_tensor_2d(weight_context_.get(), kWeightType, kColumns, kRows));
            product = ggml_mul_mat(graph_context_.get(), weights_.back(), input);
            ggml_build_forward_expand(graph_, product);
        }

        ggml_backend_dev_t device = ggml_backend_get_device(backend);
        weight_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(
            weight_context_.get(), weights_buffer_type(device, product, weights_.back())));
        graph_buffer_.reset(ggml_backend_alloc_ctx_tensors(graph_context_.get(), backend));
        if (!weight_buffer_ || !graph_buffer_) throw WindowFailure("no memory to measure with");
        fill(input);
    }

    int64_t weight_bytes() const { return static_cast<int64_t>(weights_.size()) * block_bytes(); }
    int64_t weight_count() const { return static_cast<int64_t>(weights_.size()) * kRows * kColumns; }

    static int64_t block_bytes() {
        return kRows * static_cast<int64_t>(ggml_row_size(kWeightType, kColumns));
    }

    // The least time of one run, in seconds, over about `budget`.
    double best_time(std::chrono::duration<double> budget) {
        run();  // starts the threads, brings the pages in
        double best = 1e9;
        const auto end = Clock::now() + budget;
        do {
            const auto start = Clock::now();
            run();
            best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
        } while (Clock::now() < end);
        return best;
    }

  private:
    static size_t nodes(size_t blocks) { return 2 * blocks + 2; }
    static size_t graph_overhead(size_t blocks) { return ggml_graph_overhead_custom(nodes(blocks), false); }

    void run() {
        if (ggml_backend_graph_compute(backend_, graph_) != GGML_STATUS_SUCCESS) {
            throw WindowFailure("ggml could not run a matrix product");
        }
    }

    // Ordinary values: denormals or infinities would be slower than any model is.
    void fill(ggml_tensor* input) {
        std::vector<float> row(kColumns);
        for (int64_t i = 0; i < kColumns; ++i) row[i] = static_cast<float>((i * 37) % 101 - 50) / 50.0F;
        const size_t row_bytes = ggml_row_size(kWeightType, kColumns);
        std::vector<char> block(kRows * row_bytes);
        ggml_quantize_chunk(kWeightType, row.data(), block.data(), 0, 1, kColumns, nullptr);
        for (size_t at = row_bytes; at < block.size(); at += row_bytes) {
            std::copy_n(block.begin(), row_bytes, block.begin() + at);
        }
        for (ggml_tensor* weights : weights_) {
            ggml_backend_tensor_set(weights, block.data(), 0, block.size());
        }
        for (int64_t i = 0; i < input->ne[1]; ++i) {
            ggml_backend_tensor_set(input, row.data(), i * input->nb[1], kColumns * sizeof(float));
        }
    }

    ggml_backend_t backend_;
    ggml_context_ptr weight_context_;
    ggml_context_ptr graph_context_;
    ggml_backend_buffer_ptr weight_buffer_;
    ggml_backend_buffer_ptr graph_buffer_;
    std::vector<ggml_tensor*> weights_;
    ggml_cgraph* graph_ = nullptr;
};

}  // namespace

Speed measure(int64_t n_threads, int64_t milliseconds, int64_t memory) {
    if (n_threads < 1 || n_threads > GGML_MAX_N_THREADS) {
        throw WindowFailure("cannot measure with " + std::to_string(n_threads) + " threads");
    }
    take_over_log();
    if (milliseconds < 1 || milliseconds > 60'000) throw WindowFailure("measure for 1 to 60000 ms");
    const ggml_backend_ptr backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    if (!backend) throw WindowFailure("ggml has no CPU backend");
    auto* set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(ggml_backend_get_device(backend.get())), "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) set_threads(backend.get(), static_cast<int>(n_threads));

    const std::chrono::duration<double> half(static_cast<double>(milliseconds) / 2000.0);
    const int64_t blocks = std::max<int64_t>(1, std::min(memory, kMostWeights) / Products::block_bytes());
    Speed speed;
    {
        Products vector(backend.get(), blocks, 1);
        speed.bandwidth = static_cast<double>(vector.weight_bytes()) / vector.best_time(half);
    }
    Products matrix(backend.get(), 1, kBatch);
    speed.flops = 2.0 * static_cast<double>(matrix.weight_count() * kBatch) / matrix.best_time(half);
    return speed;
}

}  // namespace edged
