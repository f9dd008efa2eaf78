// Window: from a composed file to a loaded model and context.
#include <ggml-backend.h>

#include <algorithm>
#include <array>

#include "buffer_census.hpp"
#include "error.hpp"
#include "ggml_types.hpp"
#include "llama_log.hpp"
#include "window.hpp"

namespace edged {

namespace {

constexpr int64_t kMostThreads = GGML_MAX_N_THREADS;
constexpr int64_t kCellPadding = 256;  // libllama rounds a sequence's cells up to this
constexpr int64_t kMostPositions = int64_t{1} << 24;

int64_t in_range(const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most) {
        throw WindowFailure(std::string(name) + " is " + std::to_string(value) + ", not between " +
                            std::to_string(least) + " and " + std::to_string(most));
    }
    return value;
}

const WindowOptions& checked(const WindowOptions& options) {
    in_range("n_ctx", options.n_ctx, 1, kMostPositions);
    in_range("n_seq_max", options.n_seq_max, 1, static_cast<int64_t>(llama_max_parallel_sequences()));
    in_range("n_ubatch", options.n_ubatch, 1, 1 << 16);
    in_range("n_threads", options.n_threads, 1, kMostThreads);
    in_range("n_threads_batch", options.n_threads_batch, 1, kMostThreads);
    in_range("n_gpu_layers", options.n_gpu_layers, 0, 1 << 16);
    if (options.residency && options.n_gpu_layers > 0) {
        throw WindowFailure("a window with layers on a GPU stays in memory as a whole");
    }
    in_range("n_ctx x n_seq_max", options.n_ctx * options.n_seq_max, 1, INT32_MAX / 2);
    return options;
}

ggml_type kv_type(const std::string& name) {
    constexpr std::array allowed{"f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"};
    if (std::find(allowed.begin(), allowed.end(), name) == allowed.end()) {
        throw WindowFailure("unknown KV type '" + name + "'");
    }
    return static_cast<ggml_type>(type_id(name).value());
}

llama_flash_attn_type flash_attention(const std::string& name) {
    if (name == "auto") return LLAMA_FLASH_ATTN_TYPE_AUTO;
    if (name == "on") return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (name == "off") return LLAMA_FLASH_ATTN_TYPE_DISABLED;
    throw WindowFailure("flash attention is 'auto', 'on' or 'off', not '" + name + "'");
}

bool on_progress(float done, void* progress) { return (*static_cast<const Progress*>(progress))(done); }

// ggml's flash attention divides the cache of a lone token among its threads from 512 cells on, and adds up
// in another order than for a token in company. A sequence must get the same result either way, so from the
// position where its cache can be that long it computes alone. On a GPU company matters anyway.
int32_t share_below(const WindowOptions& options) {
    const bool divides = options.n_threads > 1 && options.n_gpu_layers == 0 &&
                         options.flash_attention != "off" &&
                         (options.kv_type == "f16" || options.kv_type == "f32");
    return divides ? static_cast<int32_t>(kCellPadding) : INT32_MAX;
}

std::string layers(int first, int last) {
    return "layers " + std::to_string(first) + " to " + std::to_string(last - 1);
}

int64_t captured(const WindowSource& source) {
    int64_t sum = 0;
    for (const Tap& tap : source.captures) sum += tap.width;
    return sum;
}

// Nothing may be read or written outside of a state's row.
void check_taps(const WindowSource& source) {
    constexpr int64_t most = int64_t{1} << 24;
    if (source.width < 1 || source.width > most || source.n_embd < 1 || source.n_embd > most) {
        throw WindowFailure("a state of " + std::to_string(source.width) + " values cannot be");
    }
    const int64_t room = source.width - (source.carries_tokens ? kTokenColumns : 0);
    const auto check = [](const Tap& tap, int64_t width) {
        if (tap.name.empty() && tap.source.empty()) throw WindowFailure("a captured tensor has no name");
        if (tap.width < 1 || tap.offset < 0 || tap.width > width || tap.offset > width - tap.width) {
            throw WindowFailure("tensor " + tap.label() + " does not fit into the state");
        }
    };
    const int64_t entry_width = source.embedding && !source.layer_embedding ? source.n_embd : room;
    for (const Tap& tap : source.captures) check(tap, room);
    for (const Tap& tap : source.entries) check(tap, entry_width);
    const bool fed = source.reads_tokens || !source.entries.empty();
    if (!fed || (source.first == 0 && !source.reads_tokens && !source.embedding)) {
        throw WindowFailure("a window without inputs");
    }
    if (source.first == 0 && !source.embedding && !source.entries.empty()) {
        throw WindowFailure("a window that begins the model has no state to take in");
    }
    if (source.first > 0 && source.reads_tokens && !source.carries_tokens) {
        throw WindowFailure("a window in the middle can only read tokens that states carry");
    }
}

}  // namespace

bool Window::on_abort_check(void* window) {
    const auto* self = static_cast<const Window*>(window);
    return self->cancelled_ || (self->residency_ && !self->residency_->failure().empty());
}

Window::Window(WindowSource source, WindowOptions options, const Progress& progress)
    : first_(source.first),
      last_(source.last),
      options_(checked(options)),
      ends_(source.captures.empty()),
      reads_tokens_(source.reads_tokens),
      carries_tokens_(source.carries_tokens),
      captures_all_(captured(source) == source.width),
      n_embd_(source.n_embd),
      n_vocab_(source.n_vocab),
      width_(source.width),
      most_positions_(options.n_ctx),
      share_below_(share_below(options)),
      taps_(source.entries, source.captures, source.factors) {
    static std::once_flag once;
    std::call_once(once, llama_backend_init);
    take_over_log();

    if (first_ < 0 || last_ <= first_) throw WindowFailure("a window needs at least one layer");
    check_taps(source);
    const bool quantised = ggml_is_quantized(kv_type(options_.kv_type));
    if (quantised && flash_attention(options_.flash_attention) == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
        throw WindowFailure("a KV cache of type " + options_.kv_type +
                            " needs flash attention: turn it on, or choose f16");
    }
    if (options_.n_gpu_layers > 0 && !llama_supports_gpu_offload()) {
        throw WindowFailure("no GPU that ggml can use was found on this device: plan 0 GPU layers for it");
    }
    if (source.embedding) {
        if (first_ != 0) throw WindowFailure("only the window that begins the model has an embedding");
        if (source.embedding->n_embd != n_embd_) {
            throw WindowFailure("the token embedding does not fit the model");
        }
        embedding_.emplace(*source.embedding);
    }
    if (source.layer_embedding) {
        layer_embedding_.emplace(*source.layer_embedding);
        if (!embedding_ || layer_embedding_->n_vocab() != embedding_->n_vocab() ||
            layer_embedding_->n_embd() > width_ - n_embd_) {
            throw WindowFailure("the layers' embedding does not fit the model");
        }
    }
    load(source, progress);
    create_context();
    if (options_.rehearsal) return;
    survey();
    if (residency_) bring_in(progress);
}

std::unique_ptr<OutputMatrix> Window::output_matrix(ComposedFile& file) const {
    if (options_.residency->output_key.empty()) return nullptr;
    if (!ends_ || reads_tokens_) {
        throw WindowFailure("the output matrix can only be streamed where it is held for nothing else");
    }
    return std::make_unique<OutputMatrix>(file);
}

void Window::load(const WindowSource& source, const Progress& progress) {
    ComposedFile file(source.header, source.segments);
    const std::unique_ptr<FILE, int (*)(FILE*)> stream(open_stream(file), std::fclose);
    const ErrorLines errors;

    ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params params = llama_model_default_params();
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    params.no_alloc = options_.rehearsal;
    // libllama counts the output as one more layer, at the end
    params.n_gpu_layers = options_.n_gpu_layers == 0 ? 0 : static_cast<int32_t>(options_.n_gpu_layers) + 1;
    if (options_.n_gpu_layers == 0) params.devices = no_devices;
    const Progress halfway = [&](float) { return progress(0.0F); };  // what takes long comes after
    if (options_.residency) {
        try {
            residency_ = std::make_unique<Residency>(
                *options_.residency, first_, Placement(file), output_matrix(file),
                static_cast<int>(options_.n_threads), [header = source.header, segments = source.segments] {
                    return ComposedFile(header, segments);
                });
        } catch (const WindowFailure& failure) {
            throw WindowFailure("cannot load " + layers(first_, last_) + ": " + failure.what());
        }
        file.pass_over(residency_->ranges());
        params.tensor_buft_overrides = residency_->overrides();
    }
    if (progress) {
        params.progress_callback = on_progress;
        params.progress_callback_user_data = const_cast<Progress*>(residency_ ? &halfway : &progress);
    }
    model_.reset(llama_model_load_from_file_ptr(stream.get(), params));
    if (!model_) {
        const std::string why = file.error().empty() ? errors.summary("given up") : file.error();
        throw WindowFailure("cannot load " + layers(first_, last_) + ": " + why);
    }

    if (residency_) {
        try {
            residency_->adopt(model_.get());
        } catch (const WindowFailure& failure) {
            throw WindowFailure("cannot load " + layers(first_, last_) + ": " + failure.what());
        }
        taps_.attend(residency_.get());
    }

    if (llama_model_has_encoder(model_.get()) || !llama_model_has_decoder(model_.get())) {
        throw WindowFailure("only decoder models can be run");
    }
    if (llama_model_n_embd(model_.get()) != n_embd_) {
        throw WindowFailure("the window's header says " + std::to_string(llama_model_n_embd(model_.get())) +
                            " values per token, its source " + std::to_string(n_embd_));
    }
    if (llama_model_is_recurrent(model_.get()) || llama_model_is_hybrid(model_.get())) {
        share_below_ = kNeverShare;
    }
    const bool sees_vocab = yields_logits() || reads_tokens_;
    const int64_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    if (sees_vocab && n_vocab != n_vocab_) {
        throw WindowFailure("the window's vocabulary has " + std::to_string(n_vocab) + " tokens, not " +
                            std::to_string(n_vocab_));
    }
    // Learned positions are rows of a tensor: there are no more than the model was trained with.
    if (source.header.find("position_embd.weight") != std::string::npos) {
        most_positions_ = std::min<int64_t>(most_positions_, llama_model_n_ctx_train(model_.get()));
    }
}

void Window::create_context() {
    const ErrorLines errors;
    const int64_t cells = (options_.n_ctx + kCellPadding - 1) / kCellPadding * kCellPadding;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(cells * options_.n_seq_max);
    // libllama asserts that a batch has room for an output of every sequence, however short ours are
    params.n_batch = static_cast<uint32_t>(std::max(options_.n_ubatch, options_.n_seq_max));
    params.n_ubatch = static_cast<uint32_t>(options_.n_ubatch);
    params.n_seq_max = static_cast<uint32_t>(options_.n_seq_max);
    params.n_threads = static_cast<int32_t>(options_.n_threads);
    params.n_threads_batch = static_cast<int32_t>(options_.n_threads_batch);
    params.flash_attn_type = flash_attention(options_.flash_attention);
    params.type_k = params.type_v = kv_type(options_.kv_type);
    params.kv_unified = false;  // a sequence's result must not depend on what others have in the cache
    params.offload_kqv = params.op_offload = options_.n_gpu_layers > 0;
    params.cb_eval = Taps::on_eval;
    params.cb_eval_user_data = &taps_;
    params.abort_callback = on_abort_check;
    params.abort_callback_data = this;
    context_.reset(llama_init_from_model(model_.get(), params));
    if (!context_) {
        throw WindowFailure("cannot set up a context for " + layers(first_, last_) + ": " +
                            errors.summary("not enough memory"));
    }
    if (llama_get_memory(context_.get()) == nullptr) {
        throw WindowFailure("a model without a cache of its past cannot be run in windows");
    }
}

void Window::bring_in(const Progress& progress) {
    try {
        residency_->bring_in(progress);
    } catch (const WindowFailure& failure) {
        throw WindowFailure("cannot load " + layers(first_, last_) + ": " + failure.what());
    }
    note_residency();
}

// Runs one token through the whole graph, to see that it has the tensors to tap and where the memory went.
void Window::survey() {
    const ErrorLines errors;
    BufferCensus census;
    const int32_t zero = 0;
    const bool flagged = true;
    const BatchView batch{{&zero, 1}, {&zero, 1}, {&flagged, 1}};
    taps_.survey(census);
    if (residency_) residency_->begin_survey();
    try {
        decode({0}, batch, {&zero, 1}, true);
    } catch (const WindowFailure& failure) {
        throw WindowFailure(std::string(failure.what()) + ": " + errors.summary("no reason given"));
    }
    const std::string problem = taps_.problem();
    taps_.disarm();
    llama_memory_clear(llama_get_memory(context_.get()), true);

    if (!problem.empty()) throw WindowFailure(layers(first_, last_) + ": " + problem);
    memory_ = census.total(
        [&](ggml_backend_buffer_t buffer) { return residency_ && residency_->is_stand_in(buffer); });
    const int64_t vocab = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    memory_.compute += static_cast<uint64_t>(vocab * options_.n_seq_max) * sizeof(float);
}

}  // namespace edged
