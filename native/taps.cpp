#include "taps.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "buffer_census.hpp"
#include "residency.hpp"

namespace edged {

namespace {

// Whether `tensor` has the name, with or without a layer's number behind it.
bool is_called(const ggml_tensor* tensor, std::string_view name) {
    const std::string_view full = ggml_get_name(tensor);
    return full.starts_with(name) && (full.size() == name.size() || full[name.size()] == '-');
}

}  // namespace

bool Tap::marks(const ggml_tensor* tensor) const {
    if (!name.empty()) return name == ggml_get_name(tensor);
    return std::any_of(std::begin(tensor->src), std::end(tensor->src), [this](const ggml_tensor* one) {
        return one != nullptr && source == ggml_get_name(one);
    });
}

Taps::Taps(std::vector<Tap> writes, std::vector<Tap> reads, std::vector<Factor> factors)
    : factors_(std::move(factors)) {
    for (Tap& tap : writes) writes_.push_back({std::move(tap)});
    for (Tap& tap : reads) reads_.push_back({std::move(tap)});
}

void Taps::arm(Source from, Target to, std::span<const int32_t> rows) {
    mode_ = Mode::armed;
    from_ = from;
    to_ = to;
    rows_ = rows;
    fault_.clear();
    for (std::vector<State>* list : {&writes_, &reads_}) {
        for (State& state : *list) {
            state.done = false;
            state.into = nullptr;
        }
    }
}

void Taps::survey(BufferCensus& census) {
    arm({}, {}, {});
    mode_ = Mode::survey;
    census_ = &census;
}

void Taps::disarm() {
    mode_ = Mode::off;
    census_ = nullptr;
}

std::string Taps::problem() const {
    if (!fault_.empty()) return fault_;
    for (const std::vector<State>* list : {&writes_, &reads_}) {
        for (const State& state : *list) {
            if (!state.done) return "the graph has no tensor " + state.tap.label();
        }
    }
    return {};
}

bool Taps::on_eval(ggml_tensor* tensor, bool ask, void* self) {
    auto& taps = *static_cast<Taps*>(self);
    Residency* residency = taps.residency_;
    if (ask) {
        taps.correct(tensor);
        const bool stop = residency != nullptr && residency->on_ask(tensor);
        return taps.wants(tensor) || stop;
    }
    if (residency != nullptr) {
        residency->on_stop();
        if (!residency->failure().empty()) return false;
    }
    return taps.computed(tensor);
}

// libllama may use a graph again, so a factor that is right already stays.
void Taps::correct(ggml_tensor* tensor) const {
    if (factors_.empty() || tensor->op != GGML_OP_SCALE) return;
    float value = 0;
    std::memcpy(&value, tensor->op_params, sizeof(value));
    for (const Factor& factor : factors_) {
        if (value == factor.wrong && (factor.name.empty() || is_called(tensor, factor.name))) {
            std::memcpy(tensor->op_params, &factor.right, sizeof(float));
            return;
        }
    }
}

// A graph on several backends asks about later splits too, after all has been read.
bool Taps::wants(ggml_tensor* tensor) {
    if (mode_ == Mode::off) return false;
    if (mode_ == Mode::survey) census_->count(tensor);
    bool wanted = false;
    for (State& state : writes_) {
        if (!state.tap.into.empty() && state.into == nullptr && state.tap.into == ggml_get_name(tensor)) {
            state.into = tensor;
        }
    }
    for (std::vector<State>* list : {&writes_, &reads_}) {
        for (State& state : *list) {
            if (state.done || !state.tap.marks(tensor)) continue;
            wanted = true;
            if (mode_ == Mode::survey) note(tensor, state);
        }
    }
    return mode_ == Mode::armed && wanted;
}

void Taps::note(const ggml_tensor* tensor, State& state) {
    const ggml_tensor* target = state.tap.into.empty() ? tensor : state.into;
    state.done = target != nullptr && fits(target, state.tap, 1);
}

bool Taps::computed(ggml_tensor* tensor) {
    if (mode_ != Mode::armed) return true;
    for (State& state : writes_) {
        if (state.done || !state.tap.marks(tensor)) continue;
        ggml_tensor* target = state.tap.into.empty() ? tensor : state.into;
        if (target == nullptr || !fits(target, state.tap, static_cast<int64_t>(rows_.size()))) return false;
        write(target, state.tap);
        state.done = true;
    }
    for (State& state : reads_) {
        if (state.done || !state.tap.marks(tensor)) continue;
        if (!fits(tensor, state.tap, static_cast<int64_t>(rows_.size()))) return false;
        read(tensor, state.tap);
        state.done = true;
    }
    return !all_read();  // nothing after the last tensor is needed
}

bool Taps::all_read() const {
    return !reads_.empty() &&
           std::all_of(reads_.begin(), reads_.end(), [](const State& state) { return state.done; });
}

bool Taps::fits(const ggml_tensor* tensor, const Tap& tap, int64_t n_rows) {
    if (tensor->type == GGML_TYPE_F32 && ggml_is_contiguous(tensor) &&
        ggml_nelements(tensor) == n_rows * tap.width) {
        return true;
    }
    fault_ = "tensor " + tap.label() + " has not the expected shape";
    return false;
}

void Taps::write(ggml_tensor* tensor, const Tap& tap) {
    const auto width = static_cast<size_t>(tap.width);
    staging_.resize(rows_.size() * width);
    for (size_t i = 0; i < rows_.size(); ++i) {
        std::memcpy(staging_.data() + i * width, from_.data + rows_[i] * from_.width + tap.offset,
                    width * sizeof(float));
    }
    ggml_backend_tensor_set(tensor, staging_.data(), 0, staging_.size() * sizeof(float));
}

void Taps::read(const ggml_tensor* tensor, const Tap& tap) {
    const size_t row_bytes = static_cast<size_t>(tap.width) * sizeof(float);
    const auto n_rows = rows_.size();
    for (size_t from = 0, next = 0; from < n_rows; from = next) {
        next = from + 1;  // one copy for as many rows as keep their order, where rows lie end to end
        if (to_.width == tap.width) {
            while (next < n_rows && rows_[next] == rows_[next - 1] + 1) ++next;
        }
        ggml_backend_tensor_get(tensor, to_.data + rows_[from] * to_.width + tap.offset, from * row_bytes,
                                (next - from) * row_bytes);
    }
}

}  // namespace edged
