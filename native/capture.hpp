// Takes one tensor out of a running graph, and stops the graph there.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <span>
#include <string>

namespace edged {

// Bytes of the distinct buffers that a graph touched.
struct BufferBytes {
    uint64_t weights = 0;
    uint64_t state = 0;  // KV cache and recurrent state
    uint64_t compute = 0;
};

class BufferCensus;
class Residency;

// The eval callback of a context. Off, it lets the graph run undisturbed.
class Capture {
  public:
    explicit Capture(std::string name) : name_(std::move(name)) {}

    // Tell `residency` of every node from now on, so that its weights are there.
    void attend(Residency* residency) { residency_ = residency; }

    // Until `disarm`: copy row i of the tensor to row rows[i] of `to` (width floats each).
    void arm(float* to, int64_t width, std::span<const int32_t> rows);
    // Until `disarm`: note in `census` every buffer that the graph touches, and in `width` the tensor's.
    void survey(BufferCensus& census);
    void disarm();

    // Whether the tensor was taken since `arm`; otherwise `problem` says why not.
    bool taken() const { return taken_; }
    const std::string& problem() const { return problem_; }
    // Floats per token of the tensor, as seen by `survey`; 0 if it was not in the graph.
    int64_t surveyed_width() const { return surveyed_width_; }

    // A ggml_backend_sched_eval_callback with the Capture as user data.
    static bool on_eval(ggml_tensor* tensor, bool ask, void* self);

  private:
    bool wants(const ggml_tensor* tensor);
    void take(ggml_tensor* tensor);

    std::string name_;
    float* to_ = nullptr;
    int64_t width_ = 0;
    std::span<const int32_t> rows_;
    BufferCensus* census_ = nullptr;
    Residency* residency_ = nullptr;
    bool taken_ = false;
    std::string problem_;
    int64_t surveyed_width_ = 0;
};

}  // namespace edged
