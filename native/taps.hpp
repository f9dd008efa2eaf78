// Reads from and writes into a running graph: where a state leaves a window, and where one enters.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace edged {

// Bytes of the distinct buffers that a graph touched.
struct BufferBytes {
    uint64_t weights = 0;
    uint64_t state = 0;  // KV cache and recurrent state
    uint64_t compute = 0;
};

class BufferCensus;
class Residency;

// A tensor of the graph and its place in a state's row. The tensor is known by its own name, or as the first
// one that is computed from `source`; `into` names another to write to at that moment.
struct Tap {
    std::string name;
    std::string source;
    std::string into;
    int64_t offset = 0;  // floats before it in a row of the state
    int64_t width = 0;   // floats per token

    const std::string& label() const { return name.empty() ? source : name; }
    bool marks(const ggml_tensor* tensor) const;
};

// A factor of the graph that libllama derives from the number of layers, and what it is in the whole model.
struct Factor {
    std::string name;  // of the scaling tensor, without the layer's number; empty for any
    float wrong = 0;
    float right = 0;
};

// The eval callback of a context. Off, it lets the graph run undisturbed but for the factors.
class Taps {
  public:
    Taps(std::vector<Tap> writes, std::vector<Tap> reads, std::vector<Factor> factors);

    // Tell `residency` of every node from now on, so that its weights are there.
    void attend(Residency* residency) { residency_ = residency; }

    // Rows of floats; row i of the graph is row rows[i] of the matrix.
    struct Source {
        const float* data = nullptr;
        int64_t width = 0;
    };
    struct Target {
        float* data = nullptr;
        int64_t width = 0;
    };
    // Until `disarm`: fill the tensors that are written from `from`, copy those that are read to `to`, and
    // stop the graph once all are read.
    void arm(Source from, Target to, std::span<const int32_t> rows);
    // Until `disarm`: only note in `census` every buffer that the graph touches, and which taps it has.
    // To be run with a single token.
    void survey(BufferCensus& census);
    void disarm();

    // What went wrong, or did not happen, since `arm` or `survey`; empty if nothing.
    std::string problem() const;

    // A ggml_backend_sched_eval_callback with the Taps as user data.
    static bool on_eval(ggml_tensor* tensor, bool ask, void* self);

  private:
    enum class Mode { off, survey, armed };
    struct State {
        Tap tap;
        bool done = false;
        ggml_tensor* into = nullptr;  // the tensor named `tap.into`, once it has been computed
    };

    void correct(ggml_tensor* tensor) const;
    bool wants(ggml_tensor* tensor);
    bool computed(ggml_tensor* tensor);
    void note(const ggml_tensor* tensor, State& state);
    bool fits(const ggml_tensor* tensor, const Tap& tap, int64_t n_rows);
    void write(ggml_tensor* tensor, const Tap& tap);
    void read(const ggml_tensor* tensor, const Tap& tap);
    bool all_read() const;

    std::vector<State> writes_;
    std::vector<State> reads_;
    std::vector<Factor> factors_;
    Mode mode_ = Mode::off;
    BufferCensus* census_ = nullptr;
    Residency* residency_ = nullptr;
    Source from_;
    Target to_;
    std::span<const int32_t> rows_;
    std::string fault_;
    std::vector<float> staging_;
};

}  // namespace edged
