#include "capture.hpp"

#include <ggml-backend.h>

#include "buffer_census.hpp"
#include "residency.hpp"

namespace edged {

void Capture::arm(float* to, int64_t width, std::span<const int32_t> rows) {
    to_ = to;
    width_ = width;
    rows_ = rows;
    taken_ = false;
    problem_ = "the graph has no tensor " + name_;
}

void Capture::survey(BufferCensus& census) { census_ = &census; }

void Capture::disarm() {
    to_ = nullptr;
    census_ = nullptr;
}

bool Capture::on_eval(ggml_tensor* tensor, bool ask, void* self) {
    auto& capture = *static_cast<Capture*>(self);
    Residency* residency = capture.residency_;
    if (ask) {
        const bool stop = residency != nullptr && residency->on_ask(tensor);
        return capture.wants(tensor) || stop;
    }
    if (residency != nullptr) {
        residency->on_stop();
        if (!residency->failure().empty()) return false;
        if (!capture.wants(tensor)) return true;
    }
    capture.take(tensor);
    return false;  // nothing after this tensor is needed
}

bool Capture::wants(const ggml_tensor* tensor) {
    if (census_ != nullptr) {
        census_->count(tensor);
        if (!name_.empty() && name_ == ggml_get_name(tensor) && tensor->ne[0] > 0) {
            surveyed_width_ = ggml_nelements(tensor);  // a survey runs a single token
        }
        return false;
    }
    // A graph on several backends asks about later splits too; by then the tensor has been taken.
    return to_ != nullptr && !taken_ && name_ == ggml_get_name(tensor);
}

void Capture::take(ggml_tensor* tensor) {
    const auto n_rows = static_cast<int64_t>(rows_.size());
    if (tensor->type != GGML_TYPE_F32 || !ggml_is_contiguous(tensor) ||
        ggml_nelements(tensor) != n_rows * width_) {
        problem_ = "tensor " + name_ + " has not the expected shape";
        return;
    }
    const size_t row_bytes = static_cast<size_t>(width_) * sizeof(float);
    for (int64_t from = 0, next = 0; from < n_rows; from = next) {
        next = from + 1;  // one copy for as many rows as keep their order
        while (next < n_rows && rows_[next] == rows_[next - 1] + 1) ++next;
        ggml_backend_tensor_get(tensor, to_ + rows_[from] * width_, from * row_bytes,
                                (next - from) * row_bytes);
    }
    taken_ = true;
}

}  // namespace edged
