#include "residency.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "error.hpp"

namespace edged {

namespace {

std::string layer_name(int64_t layer) { return "layer " + std::to_string(layer); }

}  // namespace

Residency::Residency(ResidencyOptions options, int order, Placement placement,
                     std::unique_ptr<OutputMatrix> output, int n_threads, MakeFile make_file)
    : options_(std::move(options)),
      order_(order),
      placement_(std::move(placement)),
      output_(std::move(output)),
      product_(n_threads),
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

void Residency::adopt(const llama_model* model) {
    placement_.adopt(model);
    if (output_) output_->adopt(model);
    uint64_t largest = 0;
    for (const Weight& weight : placement_.weights()) largest = std::max(largest, weight.memory_bytes);
    nothing_ = Pages(largest);
    for (const Weight& weight : placement_.weights()) {
        weight.tensor->data = nothing_.data();
        placed_.insert(weight.tensor);
    }
}

void Residency::bring_in(const std::function<bool(float)>& report) {
    surveying_ = false;
    add_layers();
    uint64_t total = 0;
    for (const Layer& layer : layers_) {
        total += layer.dense->bytes() + (layer.experts ? layer.experts->weights().bytes() : 0);
    }
    pages_ = Pages(total);
    uint64_t at = 0;
    for (const Layer& layer : layers_) {
        layer.dense->settle(pages_, at);
        at += layer.dense->bytes();
        if (!layer.experts) continue;
        layer.experts->settle(pages_, at);
        at += layer.experts->weights().bytes();
    }
    put_up(checked(options_.streamed), options_.spare, report);
    make_units();
}

void Residency::add_layers() {
    RowCutter cutter;
    const uint64_t slice_bytes = options_.streamer->slice_bytes();
    const std::unordered_map<const ggml_tensor*, int> uses = survey_.uses();
    std::map<int, std::vector<Weight*>> by_layer;
    for (Weight& weight : placement_.weights()) {
        std::vector<Weight*>& layer = by_layer[weight.layer];
        const bool may_cut = uses.count(weight.tensor) > 0 && not_only_products_.count(weight.tensor) == 0;
        std::unique_ptr<RowSlices> rows;
        if (may_cut) rows = cutter.cut(weight, weight.tensor->buffer, slice_bytes);
        if (!rows) {
            layer.push_back(&weight);
            continue;
        }
        for (Weight* slice : cut(std::move(rows))) layer.push_back(slice);
    }
    for (size_t i = 0; i < options_.keys.size(); ++i) {
        add_layer(by_layer[static_cast<int>(i)], options_.images + "/" + options_.keys[i]);
        by_layer.erase(static_cast<int>(i));
    }
    if (!by_layer.empty()) {
        throw WindowFailure("the window has more layers than it has names for their images");
    }
    if (!output_) return;
    if (not_only_products_.count(output_->tensor()) > 0) {
        throw WindowFailure("the output matrix cannot be streamed: the model does not only multiply with it");
    }
    const uint64_t largest = slot_bytes_ > 0 ? std::min(slot_bytes_, slice_bytes) : slice_bytes;
    add_layer(cut(output_->cut(largest, static_cast<int>(layers_.size()))),
              options_.images + "/" + options_.output_key);
}

std::vector<Weight*> Residency::cut(std::unique_ptr<RowSlices> rows) {
    std::vector<Weight*> slices;
    std::vector<const ggml_tensor*> tensors;
    for (Weight& slice : rows->slices) {
        slice.tensor->data = nothing_.data();
        slices.push_back(&slice);
        tensors.push_back(slice.tensor);
    }
    survey_.cut(rows->matrix, tensors);
    slices_of_[rows->matrix] = std::move(rows);
    return slices;
}

// A matrix whose slices are all at home is computed with as one, in the graph.
void Residency::point_wholes() {
    for (const auto& [matrix, rows] : slices_of_) {
        if (!rows->in_place) continue;
        const LayerWeights& layer = *layer_of_.at(rows->slices.front().tensor);
        const bool home = std::all_of(rows->slices.begin(), rows->slices.end(), [&](const Weight& slice) {
            return layer.at_home(layer.part_of(slice.tensor));
        });
        rows->matrix->data = home ? rows->slices.front().tensor->data : nothing_.data();
    }
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
    // Not where it has been opened: a lost one is made again when it is missed, and not when memory is short.
    if (!out.image().is_open() && !out.image().open()) out.make_image(files());
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
    spare -= std::min(spare, options_.streamer->beyond_read_ahead(slot_bytes_));
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
    point_wholes();
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
        point_wholes();
        moved_ = true;
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

void Residency::begin_survey() {
    survey_.clear();
    surveying_ = true;
}

void Residency::survey(ggml_tensor* node) {
    // A norm is computed with the node after it.
    GraphSurvey::Step step{ggml_get_name(node), node->op != GGML_OP_RMS_NORM, false, {}};
    const auto look_at = [&](const ggml_tensor* weight, bool is_output) {
        const bool is_product = SlicedProduct::can_be(node, weight);
        // Of an output matrix the row of token 0 is got, and what is got there is written over.
        if (!is_product && !(is_output && node->op == GGML_OP_GET_ROWS)) not_only_products_.insert(weight);
        if (is_product && is_output) product_.take_out(node);
        if (is_product || !is_output) step.weights.push_back(weight);
    };
    for (const ggml_tensor* source : node->src) {
        if (source == nullptr || node->ne[1] == 0) continue;
        const ggml_tensor* weight = root_of(source);
        if (output_ && weight == output_->tensor()) look_at(weight, true);
        if (placed_.count(weight) > 0) look_at(weight, false);
    }
    survey_.add(std::move(step));
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
    const uint64_t unit_bytes = std::max(slot_bytes_, options_.streamer->unit_bytes());
    std::vector<std::unique_ptr<Unit>> units;
    for (const ggml_tensor* weight : in_order) {
        LayerWeights* layer = layer_of_.at(weight);
        const size_t part = layer->part_of(weight);
        if (layer->at_home(part) || experts_of_.count(weight) > 0) continue;
        const uint64_t bytes = layer->image().part(part).length;
        if (units.empty() || units.back()->layer != layer || units.back()->bytes + bytes > unit_bytes) {
            units.push_back(std::make_unique<Unit>());
            units.back()->layer = layer;
        }
        Unit& unit = *units.back();
        unit.streamed.add(layer->image(), part, Streamer::chunk_bytes(unit_bytes));
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
    options_.streamer->set_units(this, order_, std::move(streamed), unit_bytes, together);
    units_ = std::move(units);
}

// What is read and dropped together with the weight; null for what is resident.
const void* Residency::group_of(const ggml_tensor* weight) const {
    if (const auto unit = unit_of_.find(weight); unit != unit_of_.end()) return unit->second;
    const auto experts = experts_of_.find(weight);
    return experts != experts_of_.end() && experts->second->in_cache() ? experts->second : nullptr;
}

}  // namespace edged
