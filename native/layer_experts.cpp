#include "layer_experts.hpp"

namespace edged {

LayerExperts::LayerExperts(std::vector<Weight*> weights, const std::string& image_stem, ExpertCache& cache)
    : weights_(std::move(weights), image_stem + "-experts"), cache_(cache) {}

LayerExperts::~LayerExperts() { leave_cache(); }

void LayerExperts::settle(Pages& pages, uint64_t offset) {
    pages_ = &pages;
    offset_ = offset;
    weights_.settle(pages, offset);
    weights_.point_home();
}

void LayerExperts::enter_cache() {
    leave_cache();
    const auto& weights = weights_.weights();
    for (size_t part = 0; part < weights.size(); ++part) {
        const ggml_tensor& tensor = *weights[part]->tensor;
        const uint64_t at = offset_ + weights_.image().part(part).offset;
        sets_.push_back(std::make_unique<Experts>(weights_.image(), part, *pages_, at, tensor.nb[2],
                                                  static_cast<int>(tensor.ne[2])));
        all_.push_back(sets_.back().get());
        cache_.add(*all_.back());
    }
}

void LayerExperts::leave_cache() {
    let_go();
    for (Experts* set : all_) cache_.remove(*set);
    all_.clear();
    sets_.clear();
}

std::set<int> LayerExperts::wanted_by(const ggml_tensor* node, bool routed) const {
    std::set<int> wanted;
    const ggml_tensor* ids = node->src[2];
    if (!routed || node->op != GGML_OP_MUL_MAT_ID || ids->type != GGML_TYPE_I32) {
        for (int expert = 0; expert < all_.front()->count(); ++expert) wanted.insert(expert);
        return wanted;
    }
    for (int64_t token = 0; token < ids->ne[1]; ++token) {
        for (int64_t choice = 0; choice < ids->ne[0]; ++choice) {
            const char* at = static_cast<const char*>(ids->data) + static_cast<size_t>(token) * ids->nb[1] +
                             static_cast<size_t>(choice) * ids->nb[0];
            wanted.insert(*reinterpret_cast<const int32_t*>(at));
        }
    }
    return wanted;
}

void LayerExperts::hold_for(const ggml_tensor* node, bool routed) {
    std::set<int> wanted = wanted_by(node, routed);
    cache_.hold(all_, wanted);
    held_.push_back(std::move(wanted));
}

void LayerExperts::let_go() {
    for (const std::set<int>& wanted : held_) cache_.release(all_, wanted);
    held_.clear();
}

}  // namespace edged
