#include "graph_survey.hpp"

namespace edged {

std::vector<const ggml_tensor*> GraphSurvey::weights() const {
    std::vector<const ggml_tensor*> in_order;
    std::unordered_set<const ggml_tensor*> seen;
    for (const Step& step : steps_) {
        for (const ggml_tensor* weight : step.weights) {
            if (seen.insert(weight).second) in_order.push_back(weight);
        }
    }
    return in_order;
}

std::unordered_map<const ggml_tensor*, int> GraphSurvey::uses() const {
    std::unordered_map<const ggml_tensor*, int> count;
    for (const Step& step : steps_) {
        for (const ggml_tensor* weight : step.weights) ++count[weight];
    }
    return count;
}

std::unordered_set<const void*> GraphSurvey::groups_at(size_t step, const GroupOf& group_of) const {
    std::unordered_set<const void*> found;
    for (const ggml_tensor* weight : steps_[step].weights) {
        if (const void* group = group_of(weight); group != nullptr) found.insert(group);
    }
    return found;
}

void GraphSurvey::cut(const ggml_tensor* weight, const std::vector<const ggml_tensor*>& slices) {
    for (Step& step : steps_) {
        if (std::erase(step.weights, weight) == 0) continue;
        step.weights.insert(step.weights.end(), slices.begin(), slices.end());
        step.by_slices = true;
    }
}

// Before each group's first use, so that what precedes is computed while it is read, and after its last use,
// so that its memory is free at once. What is used by slices is a stop anyway. Stops go by the node's name,
// which must be the only one in the graph.
GraphSurvey::Stops GraphSurvey::stops(const GroupOf& group_of) const {
    std::unordered_map<std::string, int> count;
    for (const Step& step : steps_) ++count[step.name];
    const auto fits = [&](size_t at) {
        return !steps_[at].name.empty() && count[steps_[at].name] == 1 && steps_[at].splits_well;
    };
    const auto uses_none = [&](size_t at) { return groups_at(at, group_of).empty(); };
    Stops found;
    std::unordered_set<const void*> seen;
    std::unordered_map<const void*, size_t> last;
    for (size_t i = 0; i < steps_.size(); ++i) {
        for (const void* group : groups_at(i, group_of)) {
            last[group] = i;
            if (!seen.insert(group).second || steps_[i].by_slices) continue;
            size_t before = i;  // the nearest node in front that will do
            while (before > 0 && !fits(before - 1) && uses_none(before - 1)) --before;
            if (before > 0 && fits(before - 1)) found.insert(steps_[before - 1].name);
        }
    }
    for (const auto& [group, at] : last) {
        if (steps_[at].by_slices) continue;
        size_t after = at;
        while (after + 1 < steps_.size() && !fits(after) && uses_none(after + 1)) ++after;
        if (fits(after)) found.insert(steps_[after].name);
    }
    return found;
}

bool GraphSurvey::needs_several(const GroupOf& group_of, const Stops& stops) const {
    std::unordered_map<const void*, size_t> last;
    for (size_t i = 0; i < steps_.size(); ++i) {
        for (const void* group : groups_at(i, group_of)) last[group] = i;
    }
    std::unordered_set<const void*> held;
    for (size_t i = 0; i < steps_.size(); ++i) {
        std::unordered_set<const void*> groups = groups_at(i, group_of);
        const bool alone = steps_[i].by_slices && !groups.empty();  // one at a time, and at a stop
        if (!alone) held.merge(groups);
        if (held.size() > 1) return true;
        if (!alone && stops.count(steps_[i].name) == 0) continue;
        std::erase_if(held, [&](const void* group) { return last.at(group) <= i; });
    }
    return false;
}

}  // namespace edged
