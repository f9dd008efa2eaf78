// Attention over a long cache, as llama.cpp's graph has it where flash attention is off.
#include <ggml-alloc.h>
#include <ggml.h>

#include <cmath>
#include <string>
#include <vector>

#include "error.hpp"
#include "measure.hpp"
#include "timed_runs.hpp"

namespace edged {

namespace {

// A small model's: 2048 wide, four query heads to each head of the cache.
constexpr int64_t kHead = 64;
constexpr int64_t kHeads = 32;
constexpr int64_t kCacheHeads = 8;
constexpr int64_t kLayers = 4;  // each with a cache of its own
constexpr int64_t kMostDepth = 1 << 15;

// The caches of some layers and a graph for each.
class Attention {
  public:
    Attention(ggml_backend_t backend, int64_t n_tokens, int64_t depth) : backend_(backend) {
        constexpr size_t kNodes = 16;  // per graph
        const size_t size =
            kLayers * (kNodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(kNodes, false)) +
            8 * ggml_tensor_overhead();
        context_.reset(ggml_init({size, nullptr, true}));
        if (!context_) throw WindowFailure("no memory to measure with");
        ggml_context* ctx = context_.get();
        ggml_tensor* query = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, kHead, kHeads, n_tokens);
        ggml_tensor* mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, depth, n_tokens);
        inputs_ = {query, mask};
        for (int64_t layer = 0; layer < kLayers; ++layer) {
            ggml_tensor* keys = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, kHead, kCacheHeads, depth);
            ggml_tensor* values = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, depth, kHead, kCacheHeads);
            caches_.insert(caches_.end(), {keys, values});
            ggml_tensor* scores =
                ggml_mul_mat(ctx, ggml_permute(ctx, keys, 0, 2, 1, 3), ggml_permute(ctx, query, 0, 2, 1, 3));
            scores = ggml_soft_max_ext(ctx, scores, mask, 1.0F / std::sqrt(static_cast<float>(kHead)), 0.0F);
            ggml_tensor* mixed = ggml_permute(ctx, ggml_mul_mat(ctx, values, scores), 0, 2, 1, 3);
            ggml_cgraph* graph = ggml_new_graph_custom(ctx, kNodes, false);
            ggml_build_forward_expand(graph, ggml_cont_2d(ctx, mixed, kHead * kHeads, n_tokens));
            graphs_.push_back(graph);
        }
    }

    bool supported() const {
        ggml_backend_dev_t device = ggml_backend_get_device(backend_);
        for (int i = 0; i < ggml_graph_n_nodes(graphs_[0]); ++i) {
            if (!ggml_backend_dev_supports_op(device, ggml_graph_node(graphs_[0], i))) return false;
        }
        return true;
    }

    void allocate() {
        buffer_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend_));
        if (!buffer_) throw WindowFailure("no memory to measure with");
        for (ggml_tensor* tensor : caches_) fill(tensor);
        for (ggml_tensor* tensor : inputs_) fill(tensor);
    }

    void run(size_t number) {
        if (ggml_backend_graph_compute(backend_, graphs_[number % graphs_.size()]) != GGML_STATUS_SUCCESS) {
            throw WindowFailure("ggml could not run attention");
        }
    }

  private:
    static void fill(ggml_tensor* tensor) {
        const auto count = static_cast<size_t>(ggml_nelements(tensor));
        std::vector<float> values(count);
        for (size_t i = 0; i < count; ++i)
            values[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 50.0F;
        if (tensor->type == GGML_TYPE_F32) {
            ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
            return;
        }
        std::vector<ggml_fp16_t> halves(count);
        ggml_fp32_to_fp16_row(values.data(), halves.data(), static_cast<int64_t>(count));
        ggml_backend_tensor_set(tensor, halves.data(), 0, ggml_nbytes(tensor));
    }

    ggml_backend_t backend_;
    ggml_context_ptr context_;
    ggml_backend_buffer_ptr buffer_;
    std::vector<ggml_tensor*> inputs_;
    std::vector<ggml_tensor*> caches_;
    std::vector<ggml_cgraph*> graphs_;
};

}  // namespace

std::optional<double> Meter::attention(int64_t n_tokens, int64_t depth, int64_t milliseconds) {
    if (n_tokens < 1 || n_tokens > 4096) throw WindowFailure("measure with 1 to 4096 tokens");
    if (depth < 1 || depth > kMostDepth) {
        throw WindowFailure("measure with 1 to " + std::to_string(kMostDepth) + " positions");
    }
    if (milliseconds < 1 || milliseconds > 60'000) throw WindowFailure("measure for 1 to 60000 ms");
    const std::lock_guard locked(lock_);
    Attention attention(backend_.get(), n_tokens, depth);
    if (!attention.supported()) return std::nullopt;
    attention.allocate();
    attention.run(0);  // starts the threads
    const double seconds = typical_seconds(milliseconds, [&](size_t number) { attention.run(number); });
    return static_cast<double>(4 * kHead * kHeads * depth * n_tokens) / seconds;
}

}  // namespace edged
