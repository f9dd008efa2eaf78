#include "residency.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "error.hpp"

namespace edged {

namespace {

std::string layer_name(int64_t layer) { return "layer " + std::to_string(layer); }

const ggml_tensor* root_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

}  // namespace

Residency::Residency(ResidencyOptions options, int order, Placement placement,
                     std::unique_ptr<OutputRows> output, MakeFile make_file)
    : options_(std::move(options)),
      order_(order),
      placement_(std::move(placement)),
      output_(std::move(output)),
      make_file_(std::move(make_file)) {}

Residency::~Residency() {
    options_.streamer->set_units(this, order_, {}, 0, false);
    options_.streamer->spend(this, 0);
}

const llama_model_tensor_buft_override* Residency::overrides() {
    const llama_model_tensor_buft_override* layers = placement_.overrides();
    if (!output_) return layers;
    overrides_ = {output_->elsewhere()};
    do overrides_.push_back(*layers);
    while ((layers++)->pattern != nullptr);
    return overrides_.data();
}

std::vector<std::pair<uint64_t, uint64_t>> Residency::ranges() const {
    std::vector<std::pair<uint64_t, uint64_t>> ranges = placement_.ranges();
    if (output_) ranges.push_back(output_->range());
    std::sort(ranges.begin(), ranges.end());
    return ranges;
}

bool Residency::is_stand_in(ggml_backend_buffer_t buffer) const {
    return placement_.is_stand_in(buffer) || (output_ && output_->is_stand_in(buffer));
}

std::vector<int64_t> Residency::streamed() const {
    return {streamed_.begin(), streamed_.lower_bound(static_cast<int64_t>(options_.keys.size()))};
}

// What is to be streamed, of `layers_`.
std::set<int64_t> Residency::checked(const std::vector<int64_t>& layers) const {
    const auto n_layers = static_cast<int64_t>(options_.keys.size());
    for (const int64_t layer : layers) {
        if (layer < 0 || layer >= n_layers) {
            throw WindowFailure("the window has no " + layer_name(layer) + " to be streamed");
        }
    }
    std::set<int64_t> wanted(layers.begin(), layers.end());
    if (output_) wanted.insert(n_layers);
    return wanted;
}

void Residency::load(const llama_model* model, const std::function<bool(float)>& report) {
    placement_.adopt(model);
    std::map<int, std::vector<Weight*>> by_layer;
    for (Weight& weight : placement_.weights()) by_layer[weight.layer].push_back(&weight);
    for (size_t i = 0; i < options_.keys.size(); ++i) {
        add_layer(by_layer[static_cast<int>(i)], options_.images + "/" + options_.keys[i]);
    }
    if (layer_of_.size() != placement_.weights().size()) {
        throw WindowFailure("the window has more layers than it has names for their images");
    }
    if (output_) {
        output_->adopt(model, slot_bytes_, static_cast<int>(layers_.size()));
        add_layer(output_->slices(), options_.images + "/" + options_.output_key);
    }
    uint64_t total = 0;
    for (const Layer& layer : layers_) {
        total += layer.dense->bytes() + (layer.experts ? layer.experts->weights().bytes() : 0);
    }
    pages_ = Pages(total);
    nothing_ = Pages(slot_bytes_);
    uint64_t at = 0;
    for (const Layer& layer : layers_) {
        layer.dense->settle(pages_, at);
        at += layer.dense->bytes();
        for (const Weight* weight : layer.dense->weights()) weight->tensor->data = nothing_.data();
        if (!layer.experts) continue;
        layer.experts->settle(pages_, at);
        at += layer.experts->weights().bytes();
    }
    put_up(checked(options_.streamed), options_.spare, report);
}

void Residency::add_layer(std::vector<Weight*> weights, const std::string& image_stem) {
    const auto first_expert =
        std::stable_partition(weights.begin(), weights.end(), [](Weight* w) { return !is_of_experts(*w); });
    std::vector<Weight*> experts(first_expert, weights.end());
    weights.erase(first_expert, weights.end());
    Layer layer;
    for (const Weight* weight : weights) {
        slot_bytes_ = std::max(slot_bytes_, whole_pages(weight->memory_bytes));
    }
    layer.dense = std::make_unique<LayerWeights>(std::move(weights), image_stem);
    if (!experts.empty()) {
        layer.experts =
            std::make_unique<LayerExperts>(std::move(experts), image_stem, options_.streamer->experts());
        for (const Weight* weight : layer.experts->weights().weights()) {
            layer_of_[weight->tensor] = &layer.experts->weights();
            experts_of_[weight->tensor] = layer.experts.get();
        }
    }
    for (const Weight* weight : layer.dense->weights()) layer_of_[weight->tensor] = layer.dense.get();
    layers_.push_back(std::move(layer));
}

void Residency::send_out(Layer& layer, const LayerWeights::Parts& kept, const Files& files) {
    LayerWeights& out = layer.streamable();
    if (!out.image().open()) out.make_image(files());
    out.leave_home(kept);
    if (!layer.experts) {
        for (size_t i = 0; i < out.weights().size(); ++i) {
            if (!out.at_home(i)) out.weights()[i]->tensor->data = nothing_.data();
        }
        return;
    }
    if (!layer.experts->in_cache()) layer.experts->enter_cache();
    if (layer.dense->at_home()) return;
    layer.dense->bring_home(files(), layer.dense->all());
    if (options_.lock) layer.dense->lock();
}

void Residency::call_in(LayerWeights& weights, const LayerWeights::Parts& parts, const Files& files) {
    if (!weights.bring_home_from_image(parts)) weights.bring_home(files(), parts);
    if (options_.lock) weights.lock();
}

// Which tensors of the streamed layers stay in memory: the largest of which one fits, evenly spread over the
// layers, so that what is left to read comes evenly too; then the next smaller ones. Experts have their
// cache.
std::vector<LayerWeights::Parts> Residency::kept_of(const std::set<int64_t>& streamed, uint64_t spare) const {
    std::vector<LayerWeights::Parts> kept;
    for (const Layer& layer : layers_) {
        const LayerWeights& out = layer.experts ? layer.experts->weights() : *layer.dense;
        kept.emplace_back(out.weights().size(), false);
    }
    std::map<uint64_t, std::vector<std::pair<size_t, size_t>>, std::greater<>> by_size;
    for (const int64_t number : streamed) {
        const Layer& layer = layers_[static_cast<size_t>(number)];
        if (layer.experts) continue;
        for (size_t part = 0; part < layer.dense->weights().size(); ++part) {
            const uint64_t bytes = whole_pages(layer.dense->weights()[part]->memory_bytes);
            by_size[bytes].emplace_back(static_cast<size_t>(number), part);
        }
    }
    for (const auto& [bytes, places] : by_size) {
        const uint64_t count = std::min<uint64_t>(places.size(), spare / bytes);
        for (uint64_t i = 0; i < count; ++i) {
            const auto& [layer, part] = places[(i + 1) * places.size() / count - 1];
            kept[layer][part] = true;
        }
        spare -= count * bytes;
    }
    return kept;
}

void Residency::put_up(const std::set<int64_t>& wanted, uint64_t spare,
                       const std::function<bool(float)>& report) {
    const std::vector<LayerWeights::Parts> kept = kept_of(wanted, spare);
    std::unique_ptr<ComposedFile> file;
    const Files files = [&]() -> ComposedFile& {
        if (!file) file = std::make_unique<ComposedFile>(make_file_());
        return *file;
    };
    // First out, then in: at no moment is there more in memory than before or after.
    for (const bool out : {true, false}) {
        for (size_t i = 0; i < layers_.size(); ++i) {
            Layer& layer = layers_[i];
            const bool streamed = wanted.count(static_cast<int64_t>(i)) > 0;
            if (out && !streamed) continue;
            const float done = static_cast<float>(i) / static_cast<float>(layers_.size());
            if (report && !report(done)) throw WindowFailure("given up");
            if (out) {
                send_out(layer, kept[i], files);
            } else if (streamed) {
                call_in(layer.streamable(), kept[i], files);
            } else {
                if (layer.experts) layer.experts->leave_cache();
                for (LayerWeights* in : {layer.dense.get(), &layer.streamable()}) {
                    call_in(*in, in->all(), files);
                }
            }
        }
    }
    uint64_t spent = 0;
    for (const int64_t layer : wanted) {
        const Layer& one = layers_[static_cast<size_t>(layer)];
        spent += one.experts ? one.dense->bytes() : 0;
    }
    options_.streamer->spend(this, spent);
    moved_ = moved_ || wanted != streamed_ || !wanted.empty();
    streamed_ = wanted;
}

void Residency::stream(const std::vector<int64_t>& layers, uint64_t spare) {
    const std::set<int64_t> wanted = checked(layers);
    options_.streamer->set_units(this, order_, {}, 0, false);
    try {
        put_up(wanted, spare, {});
    } catch (const WindowFailure&) {
        streamed_.clear();
        for (size_t i = 0; i < layers_.size(); ++i) {
            if (!layers_[i].streamable().at_home()) streamed_.insert(static_cast<int64_t>(i));
        }
        make_units();
        throw;
    }
    make_units();
}

ResidencyBytes Residency::bytes() const {
    ResidencyBytes sum;
    const auto add = [&](const LayerWeights& weights) {
        sum.resident += weights.home_bytes();
        sum.streamed += weights.bytes() - weights.home_bytes();
        sum.locked += weights.locked();
    };
    for (const Layer& layer : layers_) {
        add(*layer.dense);
        if (layer.experts) add(layer.experts->weights());
    }
    return sum;
}

// ---- learning the graph

void Residency::begin_survey() {
    survey_.clear();
    surveying_ = true;
}

void Residency::end_survey() {
    surveying_ = false;
    make_units();
}

void Residency::make_units() {
    unit_of_.clear();
    std::vector<const ggml_tensor*> in_order = survey_.weights();
    const std::unordered_map<const ggml_tensor*, int> uses = survey_.uses();
    for (const Layer& layer : layers_) {  // a graph of another kind may need them
        for (const Weight* weight : layer.dense->weights()) {
            if (uses.count(weight->tensor) == 0) in_order.push_back(weight->tensor);
        }
    }
    std::vector<std::unique_ptr<Unit>> units;
    for (const ggml_tensor* weight : in_order) {
        LayerWeights* layer = layer_of_.at(weight);
        const size_t part = layer->part_of(weight);
        if (layer->at_home(part) || experts_of_.count(weight) > 0) continue;
        const uint64_t bytes = layer->image().part(part).length;
        if (units.empty() || units.back()->layer != layer || units.back()->bytes + bytes > slot_bytes_) {
            units.push_back(std::make_unique<Unit>());
            units.back()->layer = layer;
        }
        Unit& unit = *units.back();
        unit.streamed.add(layer->image(), part, Streamer::chunk_bytes(slot_bytes_));
        unit.tensors.push_back(const_cast<ggml_tensor*>(weight));
        unit.places.push_back(unit.bytes);
        unit.bytes += bytes;
        unit.uses += uses.count(weight) > 0 ? uses.at(weight) : 0;
        unit_of_[weight] = &unit;
    }
    std::vector<StreamUnit*> streamed;
    for (const auto& unit : units) streamed.push_back(&unit->streamed);
    stops_ = survey_.stops([this](const ggml_tensor* weight) { return group_of(weight); });
    const auto unit_of = [this](const ggml_tensor* weight) -> const void* {
        const auto unit = unit_of_.find(weight);
        return unit != unit_of_.end() ? unit->second : nullptr;
    };
    const bool together = survey_.needs_several(unit_of, stops_);
    options_.streamer->set_units(this, order_, std::move(streamed), slot_bytes_, together);
    units_ = std::move(units);
}

// What is read and dropped together with the weight; null for what is resident.
const void* Residency::group_of(const ggml_tensor* weight) const {
    if (const auto unit = unit_of_.find(weight); unit != unit_of_.end()) return unit->second;
    const auto experts = experts_of_.find(weight);
    return experts != experts_of_.end() && experts->second->in_cache() ? experts->second : nullptr;
}

// ---- during a run

void Residency::begin_run(const std::atomic<bool>& cancelled) {
    cancelled_ = &cancelled;
    failure_.clear();
    if (!units_.empty()) options_.streamer->begin(this);
}

void Residency::end_run() {
    if (output_) output_->put_back();
    let_go(true);
    for (const auto& unit : units_) unit->used = 0;
    cancelled_ = nullptr;
}

bool Residency::on_ask(ggml_tensor* node) {
    bool is_output = false;
    try {
        is_output = output_ && output_->makes(node);
    } catch (const WindowFailure& failure) {
        failure_ = failure.what();
    }
    if (is_output) output_->take_out(node);
    if (surveying_) {
        // A norm is computed with the node after it.
        GraphSurvey::Step step{ggml_get_name(node), node->op != GGML_OP_RMS_NORM, is_output, {}};
        for (const ggml_tensor* source : node->src) {
            if (source != nullptr && layer_of_.count(root_of(source)) > 0) {
                step.weights.push_back(root_of(source));
            }
        }
        if (is_output) {
            for (const Weight* slice : output_->slices()) step.weights.push_back(slice->tensor);
        }
        survey_.add(std::move(step));
        return !failure_.empty();
    }
    if (is_output) return true;
    if (!moved_) return false;
    for (ggml_tensor* source : node->src) {
        if (source == nullptr) continue;
        const ggml_tensor* weight = root_of(source);
        if (layer_of_.count(weight) == 0) continue;
        if (const auto experts = experts_of_.find(weight); experts != experts_of_.end()) {
            use_experts(*experts->second, node);
        } else {
            use(weight);
        }
        if (source != weight) source->data = static_cast<char*>(weight->data) + source->view_offs;
    }
    if (node->view_src != nullptr && layer_of_.count(node->view_src) > 0) {
        node->data = static_cast<char*>(node->view_src->data) + node->view_offs;
    }
    if (!experts_of_.empty()) not_computed_.insert(node);
    return !failure_.empty() || (!stops_.empty() && stops_.count(ggml_get_name(node)) > 0);
}

void Residency::on_stop() {
    let_go(false);
    if (output_ && output_->is_out() && !surveying_) compute_output();
}

void Residency::compute_output() {
    for (const Weight* slice : output_->slices()) {
        if (failure_.empty()) use(slice->tensor);
        if (!failure_.empty()) return;
        try {
            output_->compute(*slice);
        } catch (const WindowFailure& failure) {
            failure_ = failure.what();
        }
        if (*cancelled_) failure_ = "the run was cancelled";
        let_go(false);
    }
    output_->put_back();
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
