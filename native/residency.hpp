// Which layers of a window are in memory and which are streamed, and the streaming during a run. Of the
// streamed layers single tensors stay in memory where there is some to spare.
//
// llama.cpp asks the eval callback about every node of a graph before it computes, and stops after a node
// where the answer is yes. When it asks about a node that uses a streamed weight, the answer waits until the
// weight is there. So no node ever computes with a weight that is missing, whatever the graph. The stops,
// learned once per window, only make room early: without them a graph would be asked about as a whole, and
// all its weights would have to be there at once. A large matrix is computed with slice by slice, apart from
// the graph, so that a slice of it is all that must be there.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "graph_survey.hpp"
#include "layer_experts.hpp"
#include "layer_weights.hpp"
#include "output_matrix.hpp"
#include "pages.hpp"
#include "placement.hpp"
#include "row_slices.hpp"
#include "sliced_product.hpp"
#include "streamer.hpp"

namespace edged {

struct ResidencyOptions {
    std::shared_ptr<Streamer> streamer;
    std::string images;             // directory
    std::vector<std::string> keys;  // per layer: a name that changes with its content
    std::vector<int64_t> streamed;  // layers, counted from the window's first
    uint64_t spare = 0;             // bytes that tensors of these may take for good
    std::string output_key;         // of the output matrix, where it is streamed too; else empty
    bool lock = true;
};

struct ResidencyBytes {
    uint64_t resident = 0;  // weights that stay in memory
    uint64_t locked = 0;    // of these, what the system promised to keep there
    uint64_t streamed = 0;  // read for every run
};

class Residency {
  public:
    using MakeFile = std::function<ComposedFile()>;

    // `order`: of this window among those of the device. `make_file` opens the model's files anew. `output`:
    // of the window that ends a model, if its output matrix is streamed as long as there is the window.
    Residency(ResidencyOptions options, int order, Placement placement, std::unique_ptr<OutputMatrix> output,
              int n_threads, MakeFile make_file);
    ~Residency();
    Residency(const Residency&) = delete;
    Residency& operator=(const Residency&) = delete;

    // For llama_model_params, and for ComposedFile::pass_over.
    const llama_model_tensor_buft_override* overrides();
    std::vector<std::pair<uint64_t, uint64_t>> ranges() const;
    // Buffers that stand for a layout only.
    bool is_stand_in(ggml_backend_buffer_t buffer) const;
    ResidencyBytes bytes() const;
    std::vector<int64_t> streamed() const;

    // Takes the weights of the loaded window over. They read as zeros until they are brought in. Throws
    // WindowFailure.
    void adopt(const llama_model* model);
    // In between: learns from the graph in which order it uses which weights, and how.
    void begin_survey();
    // Brings the layers to where they belong; `report` gets the share done, and returns false to give up.
    // Throws WindowFailure.
    void bring_in(const std::function<bool(float)>& report);
    // Changes which layers are streamed, and how many bytes of them stay; no run may be in progress. Throws
    // WindowFailure, and then everything that can be computed before can be computed still.
    void stream(const std::vector<int64_t>& layers, uint64_t spare);

    // Around each run. `cancelled` ends waiting.
    void begin_run(const std::atomic<bool>& cancelled);
    void end_run();
    // From the eval callback: before a node is computed (true: stop after it), and at such a stop.
    bool on_ask(ggml_tensor* node);
    void on_stop();
    // Why the run has to end; empty if nothing is wrong.
    const std::string& failure() const { return failure_; }

  private:
    struct Unit {
        StreamUnit streamed;
        LayerWeights* layer = nullptr;
        std::vector<ggml_tensor*> tensors;
        std::vector<uint64_t> places;  // of the tensors in the slot
        uint64_t bytes = 0;
        int uses = 0;  // nodes that need it in one run
        int used = 0;
        bool held = false;
    };
    // Of a mixture `dense` has what every token uses, which stays in memory; only the experts are streamed.
    struct Layer {
        std::unique_ptr<LayerWeights> dense;
        std::unique_ptr<LayerExperts> experts;  // none where there are no experts
        LayerWeights& streamable() { return experts ? experts->weights() : *dense; }
    };

    using Files = std::function<ComposedFile&()>;  // the model's, opened when they are needed

    void survey(ggml_tensor* node);
    void add_layers();
    void add_layer(std::vector<Weight*> weights, const std::string& image_stem);
    std::vector<Weight*> cut(std::unique_ptr<RowSlices> rows);
    void point_wholes();
    bool is_in_slices(const ggml_tensor* weight) const;
    void compute_product();
    void send_out(Layer& layer, const LayerWeights::Parts& kept, const Files& files);
    void call_in(LayerWeights& weights, const LayerWeights::Parts& parts, const Files& files);
    std::vector<LayerWeights::Parts> kept_of(const std::set<int64_t>& streamed, uint64_t spare) const;
    void use(const ggml_tensor* weight);
    void use_experts(LayerExperts& experts, const ggml_tensor* node);
    const void* group_of(const ggml_tensor* weight) const;
    void hold(Unit& unit);
    void recover(LayerWeights& layer, const std::string& why);
    void let_go(bool all);
    void make_units();
    void put_up(const std::set<int64_t>& wanted, uint64_t spare, const std::function<bool(float)>& report);
    std::set<int64_t> checked(const std::vector<int64_t>& layers) const;

    const ResidencyOptions options_;
    const int order_;
    Placement placement_;
    const std::unique_ptr<OutputMatrix> output_;
    SlicedProduct product_;
    std::vector<llama_model_tensor_buft_override> overrides_;
    const MakeFile make_file_;
    Pages pages_;
    Pages nothing_;              // what streamed weights point to while they are not there
    std::vector<Layer> layers_;  // the output matrix, if it is streamed, counts as one more
    std::unordered_map<const ggml_tensor*, LayerExperts*> experts_of_;
    std::unordered_map<const ggml_tensor*, LayerWeights*> layer_of_;
    std::set<int64_t> streamed_;
    bool moved_ = false;  // whether tensors may have moved since a graph was made
    uint64_t slot_bytes_ = 0;

    bool surveying_ = false;
    GraphSurvey survey_;
    std::unordered_set<const ggml_tensor*> placed_;  // weights that may be cut
    std::unordered_set<const ggml_tensor*> not_only_products_;
    std::unordered_map<const ggml_tensor*, std::unique_ptr<RowSlices>> slices_of_;  // by the matrix
    std::vector<std::unique_ptr<Unit>> units_;
    std::unordered_map<const ggml_tensor*, Unit*> unit_of_;
    std::unordered_set<std::string> stops_;
    std::vector<Unit*> held_;
    std::set<LayerExperts*> held_experts_;
    std::unordered_set<const ggml_tensor*> not_computed_;  // asked about since the last stop
    const std::atomic<bool>* cancelled_ = nullptr;
    std::string failure_;
};

}  // namespace edged
