#include "layer_weights.hpp"

#include <algorithm>
#include <cstdio>

#include "devices.hpp"
#include "error.hpp"

namespace edged {

namespace {

std::vector<ImagePart> parts_of(const std::vector<Weight*>& weights) {
    std::vector<ImagePart> parts;
    uint64_t at = 0;
    for (const Weight* weight : weights) {
        parts.push_back({at, whole_pages(weight->memory_bytes)});
        at += parts.back().length;
    }
    return parts;
}

// What the bytes of an image depend on besides the weights: kernels, processor, shapes. Layers are counted
// from the window's first, so their number is no part of it.
uint64_t layout_of(const std::vector<Weight*>& weights) {
    std::string text = std::string(llama_version()) + "\n" + system_info();
    for (const Weight* weight : weights) {
        const ggml_tensor& tensor = *weight->tensor;
        text += "\n" + weight->name.substr(weight->name.find('.', 4)) + " " +
                ggml_backend_buft_name(weight->layout) + " " + ggml_type_name(tensor.type);
        for (const int64_t extent : tensor.ne) text += " " + std::to_string(extent);
        text += " " + std::to_string(weight->memory_bytes);
    }
    return checksum(text.data(), text.size());
}

std::string hexadecimal(uint64_t number) {
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(number));
    return digits;
}

}  // namespace

LayerWeights::LayerWeights(std::vector<Weight*> weights, const std::string& image_stem)
    : weights_(std::move(weights)),
      image_(image_stem + "-" + hexadecimal(layout_of(weights_)) + ".image", layout_of(weights_),
             parts_of(weights_)),
      parts_(parts_of(weights_)) {
    for (const ImagePart& part : parts_) bytes_ += part.length;
}

size_t LayerWeights::part_of(const ggml_tensor* tensor) const {
    const auto found = std::find_if(weights_.begin(), weights_.end(),
                                    [&](const Weight* weight) { return weight->tensor == tensor; });
    return static_cast<size_t>(found - weights_.begin());
}

void LayerWeights::settle(Pages& pages, uint64_t offset) {
    pages_ = &pages;
    offset_ = offset;
}

void LayerWeights::fill(ComposedFile& file) {
    std::vector<char> staged;
    for (size_t i = 0; i < weights_.size(); ++i) {
        const Weight& weight = *weights_[i];
        // A copy: the tensor itself may be pointed elsewhere, by a run that is using it.
        ggml_tensor tensor = *weight.tensor;
        tensor.data = home() + parts_[i].offset;
        if (ggml_backend_buft_is_host(weight.layout)) {
            file.fill(static_cast<char*>(tensor.data), weight.file_bytes, weight.file_offset);
            continue;
        }
        staged.resize(weight.file_bytes);
        file.fill(staged.data(), weight.file_bytes, weight.file_offset);
        ggml_backend_tensor_set(&tensor, staged.data(), 0, weight.file_bytes);
    }
}

void LayerWeights::bring_home(ComposedFile& file) {
    if (at_home_) return;
    try {
        fill(file);
    } catch (const WindowFailure&) {
        pages_->drop(offset_, bytes_);
        throw;
    }
    at_home_ = true;
    point_home();
}

bool LayerWeights::bring_home_from_image() {
    if (at_home_) return true;
    if (!image_.open()) return false;
    try {
        for (size_t i = 0; i < parts_.size(); ++i) {
            image_.read(i, 0, home() + parts_[i].offset, parts_[i].length);
            image_.check(i, home() + parts_[i].offset);
        }
    } catch (const WindowFailure&) {
        pages_->drop(offset_, bytes_);
        return false;
    }
    at_home_ = true;
    point_home();
    return true;
}

void LayerWeights::make_image(ComposedFile& file) {
    if (at_home_) {
        image_.write(home());
        return;
    }
    try {
        fill(file);
        image_.write(home());
    } catch (const WindowFailure&) {
        pages_->drop(offset_, bytes_);
        throw;
    }
    pages_->drop(offset_, bytes_);
}

void LayerWeights::leave_home() {
    if (locked_ > 0) pages_->unlock(offset_, bytes_);
    locked_ = 0;
    pages_->drop(offset_, bytes_);
    at_home_ = false;
}

bool LayerWeights::lock() {
    if (!pages_->lock(offset_, bytes_)) return false;
    locked_ = bytes_;
    return true;
}

void LayerWeights::point_home() {
    for (size_t i = 0; i < weights_.size(); ++i) weights_[i]->tensor->data = home() + parts_[i].offset;
}

}  // namespace edged
