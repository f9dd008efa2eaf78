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
        if (is_of_experts(*weight)) {
            parts.back().n_pieces = static_cast<uint64_t>(weight->tensor->ne[2]);
            parts.back().piece_bytes = weight->tensor->nb[2];
        }
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

bool is_of_experts(const Weight& weight) {
    const ggml_tensor& tensor = *weight.tensor;
    return weight.name.find("_exps.") != std::string::npos && tensor.ne[2] > 1 && tensor.ne[3] == 1 &&
           weight.memory_bytes == static_cast<uint64_t>(tensor.ne[2]) * tensor.nb[2];
}

LayerWeights::LayerWeights(std::vector<Weight*> weights, const std::string& image_stem)
    : weights_(std::move(weights)),
      image_(image_stem + "-" + hexadecimal(layout_of(weights_)) + ".image", layout_of(weights_),
             parts_of(weights_)),
      parts_(parts_of(weights_)),
      home_(weights_.size(), false),
      are_locked_(weights_.size(), false) {
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

LayerWeights::Parts LayerWeights::missing(const Parts& parts) const {
    Parts found = parts;
    for (size_t i = 0; i < found.size(); ++i) found[i] = parts[i] && !home_[i];
    return found;
}

void LayerWeights::fill(ComposedFile& file, const Parts& parts) {
    std::vector<char> staged;
    for (size_t i = 0; i < weights_.size(); ++i) {
        if (!parts[i]) continue;
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

void LayerWeights::drop(const Parts& parts) {
    for (size_t i = 0; i < parts.size(); ++i) {
        if (parts[i]) pages_->drop(offset_ + parts_[i].offset, parts_[i].length);
    }
}

void LayerWeights::arrived(const Parts& parts) {
    for (size_t i = 0; i < parts.size(); ++i) {
        if (!parts[i]) continue;
        home_[i] = true;
        home_bytes_ += parts_[i].length;
        weights_[i]->tensor->data = home() + parts_[i].offset;
    }
}

void LayerWeights::bring_home(ComposedFile& file, const Parts& parts) {
    const Parts wanted = missing(parts);
    try {
        fill(file, wanted);
    } catch (const WindowFailure&) {
        drop(wanted);
        throw;
    }
    arrived(wanted);
}

bool LayerWeights::bring_home_from_image(const Parts& parts) {
    const Parts wanted = missing(parts);
    if (std::find(wanted.begin(), wanted.end(), true) == wanted.end()) return true;
    if (!image_.open()) return false;
    try {
        for (size_t i = 0; i < parts_.size(); ++i) {
            if (!wanted[i]) continue;
            image_.read(i, 0, home() + parts_[i].offset, parts_[i].length);
            image_.check(i, home() + parts_[i].offset);
        }
    } catch (const WindowFailure&) {
        drop(wanted);
        return false;
    }
    arrived(wanted);
    return true;
}

void LayerWeights::make_image(ComposedFile& file) {
    Parts borrowed(weights_.size(), false);  // one at a time
    const auto give_back = [&] {
        drop(borrowed);
        borrowed.assign(weights_.size(), false);
    };
    try {
        image_.write([&](size_t part) {
            give_back();
            if (!home_[part]) {
                borrowed[part] = true;
                fill(file, borrowed);
            }
            return home() + parts_[part].offset;
        });
    } catch (const WindowFailure&) {
        give_back();
        throw;
    }
    give_back();
}

void LayerWeights::leave_home(const Parts& kept) {
    for (size_t i = 0; i < parts_.size(); ++i) {
        if (kept[i] || !home_[i]) continue;
        if (are_locked_[i]) {
            pages_->unlock(offset_ + parts_[i].offset, parts_[i].length);
            locked_ -= parts_[i].length;
        }
        pages_->drop(offset_ + parts_[i].offset, parts_[i].length);
        are_locked_[i] = home_[i] = false;
        home_bytes_ -= parts_[i].length;
    }
}

void LayerWeights::lock() {
    for (size_t i = 0; i < parts_.size(); ++i) {
        if (!home_[i] || are_locked_[i]) continue;
        if (!pages_->lock(offset_ + parts_[i].offset, parts_[i].length)) return;
        are_locked_[i] = true;
        locked_ += parts_[i].length;
    }
}

void LayerWeights::point_home() {
    for (size_t i = 0; i < weights_.size(); ++i) weights_[i]->tensor->data = home() + parts_[i].offset;
}

}  // namespace edged
