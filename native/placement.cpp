#include "placement.hpp"

#include <ggml.h>
#include <gguf.h>

#include <algorithm>
#include <optional>
#include <set>

#include "error.hpp"
#include "llama_log.hpp"
#include "unheld_buffer.hpp"

// Exported by libllama for its own tools; the build is pinned to one exact version of it.
const std::vector<std::pair<std::string, ggml_tensor*>>& llama_internal_get_tensor_map(const llama_model*);

namespace edged {

namespace {

constexpr uint64_t kLeastBytes = 32U << 10;  // what is smaller (norms, biases) stays with libllama, resident

using Model = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using Index = std::unique_ptr<gguf_context, decltype(&gguf_free)>;
using Tensors = std::unique_ptr<ggml_context, decltype(&ggml_free)>;
using Stream = std::unique_ptr<FILE, int (*)(FILE*)>;

// "blk.7.attn_q.weight" gives 7 and "attn_q.weight".
std::optional<std::pair<int, std::string>> layer_and_role(const std::string& name) {
    if (name.rfind("blk.", 0) != 0) return std::nullopt;
    const size_t dot = name.find('.', 4);
    if (dot == std::string::npos || dot == 4 || name.find_first_not_of("0123456789", 4) != dot) return {};
    return std::make_pair(std::stoi(name.substr(4, dot - 4)), name.substr(dot + 1));
}

bool on_cpu(ggml_backend_buffer_type_t layout) {
    ggml_backend_dev_t device = ggml_backend_buft_get_device(layout);
    return device == nullptr || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

std::string escaped(const std::string& text) {
    std::string result;
    for (const char c : text) {
        if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '_') result += '\\';
        result += c;
    }
    return result;
}

}  // namespace

Placement::Placement(ComposedFile& file) {
    const ErrorLines errors;
    ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params params = llama_model_default_params();
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    params.n_gpu_layers = 0;
    params.devices = no_devices;
    params.no_alloc = true;
    const Stream stream(open_stream(file), std::fclose);
    const Model model(llama_model_load_from_file_ptr(stream.get(), params), llama_model_free);
    if (!model) {
        throw WindowFailure(file.error().empty() ? errors.summary("given up") : file.error());
    }
    const Stream again(open_stream(file), std::fclose);
    const Index index(gguf_init_from_file_ptr(again.get(), {true, nullptr}), gguf_free);
    if (!index) throw WindowFailure("cannot read the window's header: " + errors.summary("no reason given"));
    find_weights(model.get(), index.get());
    make_pattern();
}

void Placement::find_weights(const llama_model* model, const gguf_context* index) {
    std::set<std::string> roles;
    const auto& tensors = llama_internal_get_tensor_map(model);
    for (const auto& [name, tensor] : tensors) {
        const auto place = layer_and_role(name);
        if (place && ggml_nbytes(tensor) >= kLeastBytes) roles.insert(place->second);
    }
    for (const auto& [name, tensor] : tensors) {
        const auto place = layer_and_role(name);
        const int64_t number = gguf_find_tensor(index, name.c_str());
        if (!place || number < 0 || roles.count(place->second) == 0) continue;
        ggml_backend_buffer_type_t layout = ggml_backend_buffer_get_type(tensor->buffer);
        if (!on_cpu(layout)) {
            throw WindowFailure("layers that are not in the processor's memory cannot be streamed");
        }
        weights_.push_back({nullptr, name, place->first,
                            gguf_get_data_offset(index) + gguf_get_tensor_offset(index, number),
                            ggml_nbytes(tensor), ggml_backend_buft_get_alloc_size(layout, tensor), layout});
    }
}

void Placement::make_pattern() {
    std::set<std::string> roles;
    for (const Weight& weight : weights_) roles.insert(layer_and_role(weight.name)->second);
    for (const std::string& role : roles) pattern_ += (pattern_.empty() ? "" : "|") + escaped(role);
    if (!roles.empty()) pattern_ = "^blk\\.[0-9]+\\.(" + pattern_ + ")$";
}

const llama_model_tensor_buft_override* Placement::overrides() {
    overrides_.clear();
    if (!pattern_.empty()) {
        overrides_.push_back({pattern_.c_str(), unheld_buffer_type()});
    }
    overrides_.push_back({nullptr, nullptr});
    return overrides_.data();
}

std::vector<std::pair<uint64_t, uint64_t>> Placement::ranges() const {
    std::vector<std::pair<uint64_t, uint64_t>> ranges;
    for (const Weight& weight : weights_) ranges.emplace_back(weight.file_offset, weight.file_bytes);
    std::sort(ranges.begin(), ranges.end());
    return ranges;
}

ggml_backend_buffer_t Placement::stand_in(ggml_backend_buffer_type_t layout) {
    auto& buffer = stand_ins_.try_emplace(layout, nullptr, ggml_backend_buffer_free).first->second;
    if (!buffer) {
        uint64_t largest = 0;
        for (const Weight& weight : weights_) {
            if (weight.layout == layout) largest = std::max(largest, weight.memory_bytes);
        }
        buffer.reset(ggml_backend_buft_alloc_buffer(layout, largest));
        if (!buffer) throw WindowFailure("not enough memory");
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }
    return buffer.get();
}

void Placement::adopt(const llama_model* model) {
    std::map<std::string, ggml_tensor*> by_name;
    for (const auto& [name, tensor] : llama_internal_get_tensor_map(model)) by_name[name] = tensor;
    const ggml_init_params params{2 * ggml_tensor_overhead(), nullptr, true};
    for (Weight& weight : weights_) {
        const auto found = by_name.find(weight.name);
        if (found == by_name.end()) throw WindowFailure("the window has lost its tensor " + weight.name);
        weight.tensor = found->second;
        // A twin takes a place in a buffer of the wanted layout, and so learns which kernels it is for.
        const Tensors twins(ggml_init(params), ggml_free);
        ggml_tensor* twin = ggml_dup_tensor(twins.get(), weight.tensor);
        ggml_set_name(twin, weight.name.c_str());
        ggml_backend_buffer_t buffer = stand_in(weight.layout);
        if (ggml_backend_tensor_alloc(buffer, twin, ggml_backend_buffer_get_base(buffer)) !=
            GGML_STATUS_SUCCESS) {
            throw WindowFailure("the tensor " + weight.name + " cannot be laid out for its kernels");
        }
        weight.tensor->buffer = buffer;
        weight.tensor->extra = twin->extra;
    }
}

bool Placement::is_stand_in(ggml_backend_buffer_t buffer) const {
    return std::any_of(stand_ins_.begin(), stand_ins_.end(),
                       [&](const auto& entry) { return entry.second.get() == buffer; });
}

}  // namespace edged
