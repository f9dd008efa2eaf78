// A window of layers: model, context and KV cache. Everything from outside is checked before libllama sees
// it.
#pragma once

#include <llama.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "batch_runs.hpp"
#include "composed_file.hpp"
#include "embedding_rows.hpp"
#include "residency.hpp"
#include "taps.hpp"

namespace edged {

constexpr int64_t kTokenColumns = 4;  // at the end of a state that carries its token

// Layers [first, last) as a composed GGUF; see edged.backend.source.WindowSource.
struct WindowSource {
    int first = 0;
    int last = 0;
    int64_t n_embd = 0;
    int64_t n_vocab = 0;
    int64_t width = 0;
    std::string header;
    std::vector<Segment> segments;
    std::optional<EmbeddingTable> embedding;
    std::optional<EmbeddingTable> layer_embedding;
    bool reads_tokens = false;
    bool carries_tokens = false;
    std::vector<Tap> entries;
    std::vector<Tap> captures;
    std::vector<Factor> factors;
};

struct WindowOptions {
    int64_t n_ctx = 0;  // positions per sequence
    int64_t n_seq_max = 1;
    int64_t n_ubatch = 1;  // most tokens in one batch
    int64_t n_threads = 1;
    int64_t n_threads_batch = 1;
    std::string kv_type = "f16";
    std::string flash_attention = "auto";
    int64_t n_gpu_layers = 0;
    bool rehearsal = false;                     // everything but the weights: the window cannot run
    std::optional<ResidencyOptions> residency;  // none: libllama holds all weights in memory
};

struct BatchView {
    std::span<const int32_t> seq_ids;
    std::span<const int32_t> positions;
    std::span<const bool> outputs;
    size_t size() const { return seq_ids.size(); }
};

// A matrix of floats that the caller takes over.
struct Rows {
    std::unique_ptr<float[]> data;
    int64_t n_rows = 0;
    int64_t width = 0;
};

// Returns false to give up loading.
using Progress = std::function<bool(float)>;

// One call at a time; others wait. All methods throw WindowFailure.
class Window {
  public:
    Window(WindowSource source, WindowOptions options, const Progress& progress);
    ~Window();
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;

    int first() const { return first_; }
    int last() const { return last_; }
    int64_t width() const { return width_; }
    int64_t n_vocab() const { return n_vocab_; }
    BufferBytes memory() const;
    ResidencyBytes residency() const;
    std::vector<int64_t> streamed() const;
    bool takes_tokens() const { return first_ == 0; }
    bool yields_logits() const { return ends_; }

    // One of `tokens` and `hidden` (batch.size() x width) is used, as takes_tokens() says.
    Rows run(const BatchView& batch, std::span<const int32_t> tokens, std::span<const float> hidden);
    Rows run_last(const BatchView& batch, std::span<const int32_t> tokens, std::span<const float> hidden);

    // False where the model cannot forget a part of a sequence.
    bool remove(int64_t seq, int64_t from, int64_t to);
    void copy(int64_t seq, int64_t target);
    void keep(int64_t seq);
    void clear();

    // Makes the run in progress, if any, end with an error. From any thread.
    void cancel();
    // Changes which layers (counted from the window's first) are read for every run; results stay the same.
    void stream(const std::vector<int64_t>& layers, uint64_t spare);
    // Frees everything; idempotent. Cancels a run in progress and waits for its end.
    void close();

  private:
    std::unique_ptr<OutputMatrix> output_matrix(ComposedFile& file) const;
    void load(const WindowSource& source, const Progress& progress);
    void create_context();
    void survey();
    void bring_in(const Progress& progress);
    static bool on_abort_check(void* window);

    void check_open() const;
    int32_t check_sequence(int64_t seq) const;
    void check_batch(const BatchView& batch, std::span<const int32_t> tokens,
                     std::span<const float> hidden) const;
    void check_sequence_continues(const BatchView& batch) const;
    void check_tokens(std::span<const int32_t> tokens) const;
    void check_hidden(size_t n_tokens, std::span<const float> hidden) const;
    // What this window's layers are to be computed from, read and checked.
    struct Inputs {
        std::span<const int32_t> tokens;  // for libllama; empty where it gets token 0 throughout
        Taps::Source entry;
    };
    Inputs prepare(const BatchView& batch, std::span<const int32_t> tokens, std::span<const float> hidden);
    Rows blank_states(const BatchView& batch, const Inputs& inputs, std::span<const float> hidden) const;

    // Runs `body` for each run of the batch; on any failure forgets the whole batch, then rethrows.
    template <typename Body>
    void in_runs(const BatchView& batch, Body body);
    void decode(const Run& run, const BatchView& batch, std::span<const int32_t> tokens, bool all_outputs);
    std::string forget(const BatchView& batch);

    const int first_;
    const int last_;
    const WindowOptions options_;
    const bool ends_;
    const bool reads_tokens_;    // libllama gets the true tokens
    const bool carries_tokens_;  // the last columns of a state are its token
    const bool captures_all_;    // every column of a state is read from the graph
    int64_t n_embd_ = 0;
    int64_t n_vocab_ = 0;
    int64_t width_ = 0;
    int64_t most_positions_ = 0;
    int32_t share_below_ = INT32_MAX;
    BufferBytes memory_;

    void note_residency();
    void check_computed(std::span<const float> values);
    void wipe_spoiled();

    mutable std::mutex lock_;
    mutable std::mutex figures_lock_;  // of the two below: they are read while a run holds lock_
    ResidencyBytes residency_bytes_;
    std::vector<int64_t> streamed_;
    std::atomic<bool> cancelled_{false};
    bool spoiled_ = false;  // whether there may be numbers in the cache that are none
    std::optional<EmbeddingRows> embedding_;
    std::optional<EmbeddingRows> layer_embedding_;
    Taps taps_;
    std::unique_ptr<Residency> residency_;
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model_{nullptr, llama_model_free};
    std::unique_ptr<llama_context, decltype(&llama_free)> context_{nullptr, llama_free};

    // Reused from run to run.
    std::vector<float> embedded_;
    std::vector<int32_t> carried_;
    std::vector<llama_token> batch_tokens_;
    std::vector<llama_pos> batch_positions_;
    std::vector<int32_t> batch_n_seq_;
    std::vector<llama_seq_id> batch_seq_;
    std::vector<llama_seq_id*> batch_seq_pointers_;
    std::vector<int8_t> batch_outputs_;
};

}  // namespace edged
