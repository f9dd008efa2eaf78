#include "measure.hpp"

#include <ggml-alloc.h>
#include <ggml.h>

#include <algorithm>
#include <array>
#include <vector>

#include "error.hpp"
#include "llama_log.hpp"
#include "timed_runs.hpp"

namespace edged {

namespace {

constexpr int64_t kCpuSide = 2048;      // rows and columns of one matrix: as wide as a small model's state
constexpr int64_t kGpuSide = 4096;      // large enough that starting its product is not what takes the time
constexpr int64_t kCpuGroup = 8 << 20;  // bytes of one run: short, so that few runs are interrupted
constexpr int64_t kProbeColumns = 512;  // llama.cpp chooses buffers by a product of this width

// Those that ggml has a quantiser for.
constexpr std::array kMeasurable{
    GGML_TYPE_F32,     GGML_TYPE_F16,   GGML_TYPE_BF16,  GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,   GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1,    GGML_TYPE_Q8_0,  GGML_TYPE_Q2_K,  GGML_TYPE_Q3_K,   GGML_TYPE_Q4_K,   GGML_TYPE_Q5_K,
    GGML_TYPE_Q6_K,    GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS, GGML_TYPE_IQ3_S,
    GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ2_S, GGML_TYPE_MXFP4,
};

// The buffer type that llama.cpp would put such weights into: repacked where the CPU has kernels for it.
// Null where the device cannot multiply them at all.
ggml_backend_buffer_type_t weights_buffer_type(ggml_backend_dev_t device, ggml_type type, int64_t side,
                                               bool repack) {
    const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 3, nullptr, true}));
    if (!context) throw WindowFailure("no memory to measure with");
    ggml_tensor* weights = ggml_new_tensor_2d(context.get(), type, side, side);
    ggml_tensor* input = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, side, kProbeColumns);
    ggml_tensor* product = ggml_mul_mat(context.get(), weights, input);
    const auto supported = [&](ggml_backend_buffer_type_t candidate) {
        const ggml_backend_buffer_ptr probe(ggml_backend_buft_alloc_buffer(candidate, 0));
        weights->buffer = probe.get();
        const bool fits = probe != nullptr && ggml_backend_dev_supports_op(device, product);
        weights->buffer = nullptr;
        return fits;
    };
    auto* extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    ggml_backend_buffer_type_t* candidate = extra == nullptr || !repack ? nullptr : extra(device);
    for (; candidate != nullptr && *candidate != nullptr; ++candidate) {
        if (supported(*candidate)) return *candidate;
    }
    ggml_backend_buffer_type_t plain = ggml_backend_dev_buffer_type(device);
    return supported(plain) ? plain : nullptr;
}

// Products W x of `count` matrices W, each of side x side weights, with one x of `batch` columns. There are
// many, as in a model: a repacking buffer takes a tensor only as a whole, and so the copy that it is filled
// from need be no larger than one of them.
class Products {
  public:
    Products(ggml_backend_t backend, ggml_backend_buffer_type_t place, ggml_type type, int64_t side,
             int64_t count)
        : backend_(backend), type_(type), side_(side) {
        weight_context_.reset(
            ggml_init({ggml_tensor_overhead() * static_cast<size_t>(count), nullptr, true}));
        if (!weight_context_) throw WindowFailure("no memory to measure with");
        for (int64_t i = 0; i < count; ++i) {
            weights_.push_back(ggml_new_tensor_2d(weight_context_.get(), type, side, side));
        }
        weight_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(weight_context_.get(), place));
        if (!weight_buffer_) throw WindowFailure("no memory to measure with");
        fill_weights();
    }

    // Seconds per matrix of a run over `group` of them, one group after the other over about `milliseconds`.
    double typical_time(size_t group, int64_t batch, int64_t milliseconds) {
        const size_t graphs = weights_.size() / group;
        const size_t nodes = 2 * group + 2;
        const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * (weights_.size() + 2) +
                                                      graphs * ggml_graph_overhead_custom(nodes, false),
                                                  nullptr, true}));
        if (!context) throw WindowFailure("no memory to measure with");
        ggml_tensor* input = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, side_, batch);
        std::vector<ggml_cgraph*> runs;
        for (size_t i = 0; i < graphs; ++i) {
            ggml_cgraph* graph = ggml_new_graph_custom(context.get(), nodes, false);
            for (size_t j = 0; j < group; ++j) {
                ggml_build_forward_expand(graph, ggml_mul_mat(context.get(), weights_[i * group + j], input));
            }
            runs.push_back(graph);
        }
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend_));
        if (!buffer) throw WindowFailure("no memory to measure with");
        const std::vector<float> row = some_values();
        for (int64_t i = 0; i < batch; ++i) {
            ggml_backend_tensor_set(input, row.data(), i * input->nb[1], row.size() * sizeof(float));
        }

        run(runs.back());  // starts the threads
        const double seconds =
            typical_seconds(milliseconds, [&](size_t number) { run(runs[number % runs.size()]); });
        return seconds / static_cast<double>(group);
    }

  private:
    void run(ggml_cgraph* graph) {
        if (ggml_backend_graph_compute(backend_, graph) != GGML_STATUS_SUCCESS) {
            throw WindowFailure("ggml could not run a matrix product");
        }
    }

    // Ordinary values: denormals or infinities would be slower than any model is.
    std::vector<float> some_values() const {
        std::vector<float> row(static_cast<size_t>(side_));
        for (size_t i = 0; i < row.size(); ++i) {
            row[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 50.0F;
        }
        return row;
    }

    void fill_weights() {
        const std::vector<float> row = some_values();
        const std::vector<float> importance(row.size(), 1.0F);  // the smallest types demand it
        const size_t row_bytes = ggml_row_size(type_, side_);
        std::vector<char> matrix(static_cast<size_t>(side_) * row_bytes);
        ggml_quantize_chunk(type_, row.data(), matrix.data(), 0, 1, side_, importance.data());
        for (size_t at = row_bytes; at < matrix.size(); at += row_bytes) {
            std::copy_n(matrix.begin(), row_bytes, matrix.begin() + static_cast<ptrdiff_t>(at));
        }
        for (ggml_tensor* weights : weights_) {
            ggml_backend_tensor_set(weights, matrix.data(), 0, matrix.size());
        }
    }

    ggml_backend_t backend_;
    const ggml_type type_;
    const int64_t side_;
    ggml_context_ptr weight_context_;
    ggml_backend_buffer_ptr weight_buffer_;
    std::vector<ggml_tensor*> weights_;
};

ggml_backend_dev_t device_called(const std::string& name) {
    ggml_backend_dev_t device = ggml_backend_dev_by_name(name.c_str());
    if (device == nullptr) throw WindowFailure("ggml knows no device called '" + name + "' here");
    return device;
}

void check(const ProductOptions& options) {
    if (std::find(kMeasurable.begin(), kMeasurable.end(), options.type) == kMeasurable.end()) {
        throw WindowFailure("tensor type " + std::to_string(options.type) + " cannot be measured");
    }
    if (options.batch < 1 || options.batch > 4096) throw WindowFailure("measure with 1 to 4096 tokens");
    if (options.milliseconds < 1 || options.milliseconds > 60'000) {
        throw WindowFailure("measure for 1 to 60000 ms");
    }
}

}  // namespace

Meter::Meter(const std::string& device, int64_t n_threads) {
    if (n_threads < 1 || n_threads > GGML_MAX_N_THREADS) {
        throw WindowFailure("cannot measure with " + std::to_string(n_threads) + " threads");
    }
    take_over_log();
    backend_.reset(ggml_backend_dev_init(device_called(device), nullptr));
    if (!backend_) throw WindowFailure("ggml cannot use the device " + device);
    auto* set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(ggml_backend_get_device(backend_.get())), "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) set_threads(backend_.get(), static_cast<int>(n_threads));
}

std::optional<Speed> Meter::products(const ProductOptions& options) {
    check(options);
    const std::lock_guard locked(lock_);
    ggml_backend_dev_t device = ggml_backend_get_device(backend_.get());
    const bool is_cpu = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
    const int64_t side = is_cpu ? kCpuSide : kGpuSide;
    const auto type = static_cast<ggml_type>(options.type);
    ggml_backend_buffer_type_t place = weights_buffer_type(device, type, side, options.repack);
    if (place == nullptr) return std::nullopt;

    const int64_t matrix_bytes = side * static_cast<int64_t>(ggml_row_size(type, side));
    const int64_t count = std::clamp<int64_t>(options.memory / matrix_bytes, 1, 4096);
    const int64_t half = std::max<int64_t>(1, options.milliseconds / 2);
    Products products(backend_.get(), place, type, side, count);
    const int64_t group = is_cpu ? std::clamp<int64_t>(kCpuGroup / matrix_bytes, 1, count) : count;
    Speed speed;
    speed.bandwidth =
        static_cast<double>(matrix_bytes) / products.typical_time(static_cast<size_t>(group), 1, half);
    const auto operations = static_cast<double>(2 * side * side * options.batch);
    const int64_t batch_group = is_cpu ? 1 : count;
    speed.flops = operations / products.typical_time(static_cast<size_t>(batch_group), options.batch, half);
    return speed;
}

}  // namespace edged
