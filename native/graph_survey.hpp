// What one run's graph uses of a window's weights, in order, and where to stop in it.
//
// Weights come in groups that are read and dropped together. At a stop everything in front is computed, and
// the groups that are not needed any more can be let go.
#pragma once

#include <ggml.h>

#include <functional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace edged {

// What a view looks into, or the tensor itself.
inline const ggml_tensor* root_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

class GraphSurvey {
  public:
    struct Step {  // a node of the graph
        std::string name;
        bool splits_well = true;  // whether one may stop after it
        bool by_slices = false;   // of its weight, one after the other, once all in front is computed
        std::vector<const ggml_tensor*> weights;
    };
    using Stops = std::unordered_set<std::string>;  // names of nodes
    // The group of a weight; null for what is always there.
    using GroupOf = std::function<const void*(const ggml_tensor*)>;

    void clear() { steps_.clear(); }
    void add(Step step) { steps_.push_back(std::move(step)); }

    // The weight is used by slices of it, wherever it is used.
    void cut(const ggml_tensor* weight, const std::vector<const ggml_tensor*>& slices);

    // In order of their first use.
    std::vector<const ggml_tensor*> weights() const;
    // By how many nodes each is used.
    std::unordered_map<const ggml_tensor*, int> uses() const;
    Stops stops(const GroupOf& group_of) const;
    // Whether a run ever needs a second group before it can let go of the first.
    bool needs_several(const GroupOf& group_of, const Stops& stops) const;

  private:
    std::unordered_set<const void*> groups_at(size_t step, const GroupOf& group_of) const;

    std::vector<Step> steps_;
};

}  // namespace edged
