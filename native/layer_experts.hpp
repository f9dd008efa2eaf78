// The experts of one layer of a mixture: at home like other weights, or in the cache as far as they are used.
#pragma once

#include <ggml.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "expert_cache.hpp"
#include "layer_weights.hpp"

namespace edged {

class LayerExperts {
  public:
    LayerExperts(std::vector<Weight*> weights, const std::string& image_stem, ExpertCache& cache);
    ~LayerExperts();
    LayerExperts(const LayerExperts&) = delete;
    LayerExperts& operator=(const LayerExperts&) = delete;

    LayerWeights& weights() { return weights_; }
    // Where they are, at home or not; see LayerWeights::settle.
    void settle(Pages& pages, uint64_t offset);
    // From now on the cache brings them; they are not at home, and there is an image.
    void enter_cache();
    void leave_cache();
    bool in_cache() const { return !sets_.empty(); }

    // Makes sure, until `let_go`, that the experts are there to which `node` routes its tokens. `routed`:
    // whether that is computed already; otherwise all experts are brought. Throws WindowFailure.
    void hold_for(const ggml_tensor* node, bool routed);
    void let_go();

  private:
    std::set<int> wanted_by(const ggml_tensor* node, bool routed) const;

    LayerWeights weights_;
    ExpertCache& cache_;
    Pages* pages_ = nullptr;
    uint64_t offset_ = 0;
    std::vector<std::unique_ptr<Experts>> sets_;
    std::vector<Experts*> all_;
    std::vector<std::set<int>> held_;
};

}  // namespace edged
