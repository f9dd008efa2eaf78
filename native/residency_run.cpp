// Residency during a run: what streamed weights there have to be, and when they may go.
#include <ggml.h>

#include <algorithm>

#include "error.hpp"
#include "residency.hpp"

namespace edged {

void Residency::begin_run(const std::atomic<bool>& cancelled) {
    cancelled_ = &cancelled;
    failure_.clear();
    if (!units_.empty()) options_.streamer->begin(this);
}

void Residency::end_run() {
    product_.put_back();
    let_go(true);
    for (const auto& unit : units_) unit->used = 0;
    cancelled_ = nullptr;
}

bool Residency::on_ask(ggml_tensor* node) {
    if (surveying_) {
        survey(node);
        return false;
    }
    if (!moved_) return false;
    for (ggml_tensor* source : node->src) {
        if (source == nullptr) continue;
        const ggml_tensor* weight = root_of(source);
        if (is_in_slices(weight)) {
            if (SlicedProduct::can_be(node, weight)) {
                if (node->ne[1] == 0) continue;  // no token of the batch wants logits
                product_.take_out(node);
                return true;
            }
            const bool is_output = output_ && weight == output_->tensor();
            if (!is_output || node->op != GGML_OP_GET_ROWS) {
                failure_ = "the model computes with a matrix in another way than when it was loaded";
            }
        } else if (layer_of_.count(weight) > 0) {
            if (const auto experts = experts_of_.find(weight); experts != experts_of_.end()) {
                use_experts(*experts->second, node);
            } else {
                use(weight);
            }
            if (source != weight) source->data = static_cast<char*>(weight->data) + source->view_offs;
        }
    }
    if (node->view_src != nullptr && layer_of_.count(node->view_src) > 0) {
        node->data = static_cast<char*>(node->view_src->data) + node->view_offs;
    }
    if (!experts_of_.empty()) not_computed_.insert(node);
    return !failure_.empty() || (!stops_.empty() && stops_.count(ggml_get_name(node)) > 0);
}

void Residency::on_stop() {
    let_go(false);
    if (product_.is_out()) compute_product();
}

// A cut matrix of which not all is at home.
bool Residency::is_in_slices(const ggml_tensor* weight) const {
    const auto found = slices_of_.find(weight);
    return found != slices_of_.end() && (!found->second->in_place || weight->data == nothing_.data());
}

void Residency::compute_product() {
    const RowSlices& rows = *slices_of_.at(product_.matrix());
    for (size_t i = 0; i < rows.slices.size(); ++i) {
        if (failure_.empty()) use(rows.slices[i].tensor);
        if (!failure_.empty()) return;
        try {
            product_.compute(rows, i);
        } catch (const WindowFailure& failure) {
            failure_ = failure.what();
        }
        if (*cancelled_) failure_ = "the run was cancelled";
        let_go(false);
    }
    product_.put_back();
}

void Residency::use(const ggml_tensor* weight) {
    const auto found = unit_of_.find(weight);
    if (found == unit_of_.end()) return;
    Unit& unit = *found->second;
    ++unit.used;
    if (!unit.held && failure_.empty()) hold(unit);
}

void Residency::use_experts(LayerExperts& experts, const ggml_tensor* node) {
    if (!experts.in_cache() || !failure_.empty()) return;
    const ggml_tensor* ids = node->src[2];
    const bool routed =
        ids != nullptr && not_computed_.count(ids) == 0 && not_computed_.count(root_of(ids)) == 0;
    held_experts_.insert(&experts);
    try {
        try {
            experts.hold_for(node, routed);
        } catch (const WindowFailure& failure) {
            experts.leave_cache();
            try {
                recover(experts.weights(), failure.what());
            } catch (const WindowFailure&) {
                experts.enter_cache();
                throw;
            }
            experts.enter_cache();
            experts.hold_for(node, routed);
        }
    } catch (const WindowFailure& failure) {
        failure_ = failure.what();
    }
}

void Residency::hold(Unit& unit) {
    static const std::atomic<bool> kNever{false};
    const std::atomic<bool>& cancelled = cancelled_ != nullptr ? *cancelled_ : kNever;
    char* slot = nullptr;
    try {
        try {
            slot = options_.streamer->hold(unit.streamed, cancelled);
        } catch (const WindowFailure& failure) {
            if (cancelled) throw;
            recover(*unit.layer, failure.what());
            slot = options_.streamer->hold(unit.streamed, cancelled);
        }
    } catch (const WindowFailure& failure) {
        failure_ = failure.what();
        return;
    }
    for (size_t i = 0; i < unit.tensors.size(); ++i) unit.tensors[i]->data = slot + unit.places[i];
    unit.held = true;
    held_.push_back(&unit);
}

// The image is gone or damaged: the model's own files may still be there.
void Residency::recover(LayerWeights& layer, const std::string& why) {
    try {
        ComposedFile file = make_file_();
        layer.make_image(file);
    } catch (const WindowFailure& second) {
        const std::string what = second.what();
        const bool advises = what.find("; ") != std::string::npos;  // as for a full disk
        throw WindowFailure(why + "; and it cannot be made again: " + what +
                            (advises
                                 ? ""
                                 : "; bring the model to this device again (edged import, edged pull), or "
                                   "mend its disk"));
    }
}

void Residency::let_go(bool all) {
    for (Unit* unit : held_) {
        options_.streamer->release(unit->streamed, all || unit->used >= unit->uses);
        for (ggml_tensor* tensor : unit->tensors) tensor->data = nothing_.data();
        unit->held = false;
    }
    held_.clear();
    for (LayerExperts* experts : held_experts_) experts->let_go();
    held_experts_.clear();
    not_computed_.clear();
}

}  // namespace edged
