#include "window.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "error.hpp"

namespace edged {

namespace {

constexpr uint32_t kExponent = 0x7f800000;  // all ones in an infinity or NaN
constexpr uint32_t kAllButSign = 0x7fffffff;

std::string at_row(size_t row) { return " (row " + std::to_string(row) + ")"; }

// A token at the end of a state: three digits to the base 128, after a column that makes their block's
// largest value 127, so that they come through every form in which states travel.
constexpr int32_t kDigit = 128;

void carry_token(int32_t token, float* end) {
    end[-4] = static_cast<float>(kDigit - 1);
    for (int column = 1; column <= 3; ++column, token /= kDigit) {
        end[-column] = static_cast<float>(token % kDigit);
    }
}

int32_t carried_token(const float* end) {
    int32_t token = 0;
    for (int column = 3; column >= 1; --column) {
        const float digit = end[-column];
        if (!(digit >= 0 && digit < static_cast<float>(kDigit))) return -1;
        token = token * kDigit + static_cast<int32_t>(digit + 0.5F);
    }
    return token;
}

}  // namespace

Window::~Window() { close(); }

void Window::close() {
    cancel();
    const std::lock_guard guard(lock_);
    context_.reset();
    model_.reset();
    taps_.attend(nullptr);
    residency_.reset();
    embedding_.reset();
    layer_embedding_.reset();
}

void Window::check_open() const {
    if (!context_) throw WindowFailure("the window is closed");
}

int32_t Window::check_sequence(int64_t seq) const {
    if (seq < 0 || seq >= options_.n_seq_max) {
        throw WindowFailure("sequence " + std::to_string(seq) + " is not between 0 and " +
                            std::to_string(options_.n_seq_max - 1));
    }
    return static_cast<int32_t>(seq);
}

void Window::check_batch(const BatchView& batch, std::span<const int32_t> tokens,
                         std::span<const float> hidden) const {
    const size_t n_tokens = batch.size();
    if (batch.positions.size() != n_tokens || batch.outputs.size() != n_tokens) {
        throw WindowFailure("a batch needs as many positions and output flags as sequence ids");
    }
    if (n_tokens > static_cast<size_t>(options_.n_ubatch)) {
        throw WindowFailure("a batch of " + std::to_string(n_tokens) + " tokens, where at most " +
                            std::to_string(options_.n_ubatch) + " are allowed");
    }
    for (const int32_t seq : batch.seq_ids) check_sequence(seq);
    check_sequence_continues(batch);
    if (takes_tokens()) {
        if (tokens.size() != n_tokens) throw WindowFailure("a batch needs one token per row");
        check_tokens(tokens);
    } else {
        check_hidden(n_tokens, hidden);
    }
}

void Window::check_sequence_continues(const BatchView& batch) const {
    std::map<int32_t, int64_t> next;
    for (size_t row = 0; row < batch.size(); ++row) {
        const int32_t seq = batch.seq_ids[row];
        auto found = next.find(seq);
        if (found == next.end()) {
            const llama_pos last = llama_memory_seq_pos_max(llama_get_memory(context_.get()), seq);
            found = next.emplace(seq, int64_t{last} + 1).first;
        }
        const int32_t position = batch.positions[row];
        if (position != found->second) {
            throw WindowFailure("sequence " + std::to_string(seq) + " goes on at position " +
                                std::to_string(found->second) + ", not " + std::to_string(position) +
                                at_row(row));
        }
        if (position >= most_positions_) {
            throw WindowFailure("sequence " + std::to_string(seq) + " is full: the context has " +
                                std::to_string(most_positions_) + " positions");
        }
        ++found->second;
    }
}

void Window::check_tokens(std::span<const int32_t> tokens) const {
    const int64_t n_vocab = embedding_ ? embedding_->n_vocab() : n_vocab_;
    for (size_t row = 0; row < tokens.size(); ++row) {
        if (tokens[row] < 0 || tokens[row] >= n_vocab) {
            throw WindowFailure("token " + std::to_string(tokens[row]) + " is not between 0 and " +
                                std::to_string(n_vocab - 1) + at_row(row));
        }
    }
}

void Window::check_hidden(size_t n_tokens, std::span<const float> hidden) const {
    if (hidden.size() != n_tokens * static_cast<size_t>(width_)) {
        throw WindowFailure("hidden states must have " + std::to_string(width_) + " values per token");
    }
    // A NaN in the cache would stay after its sequence is removed, and spoil the next one there.
    uint32_t not_finite = 0;
    for (const float value : hidden) {
        const auto bits = std::bit_cast<uint32_t>(value);
        not_finite |= static_cast<uint32_t>((bits & kExponent) == kExponent);
    }
    if (not_finite != 0) throw WindowFailure("a hidden state has a value that is not finite");
}

Window::Inputs Window::prepare(const BatchView& batch, std::span<const int32_t> tokens,
                               std::span<const float> hidden) {
    const size_t n = batch.size();
    Inputs inputs;
    if (takes_tokens()) {
        inputs.tokens = tokens;
        if (embedding_) {
            const int64_t width = layer_embedding_ ? width_ : n_embd_;
            embedded_.assign(n * static_cast<size_t>(width), 0.0F);
            for (size_t row = 0; row < n; ++row) {
                float* to = embedded_.data() + row * static_cast<size_t>(width);
                embedding_->read(tokens[row], to);
                if (layer_embedding_) {
                    layer_embedding_->read(tokens[row], to + width - layer_embedding_->n_embd());
                }
            }
            inputs.entry = {embedded_.data(), width};
        }
        return inputs;
    }
    inputs.entry = {hidden.data(), width_};
    if (carries_tokens_) {
        carried_.resize(n);
        for (size_t row = 0; row < n; ++row) {
            carried_[row] = carried_token(hidden.data() + (row + 1) * static_cast<size_t>(width_));
        }
        check_tokens(carried_);
        inputs.tokens = carried_;
    }
    return inputs;
}

// What no capture fills is handed on as it came in.
Rows Window::blank_states(const BatchView& batch, const Inputs& inputs, std::span<const float> hidden) const {
    const auto n_rows = static_cast<int64_t>(batch.size());
    const auto n_values = static_cast<size_t>(n_rows * width_);
    Rows rows{std::make_unique_for_overwrite<float[]>(n_values), n_rows, width_};
    if (captures_all_) return rows;
    if (takes_tokens()) {
        if (layer_embedding_) {
            std::memcpy(rows.data.get(), inputs.entry.data, n_values * sizeof(float));
        } else {
            std::fill_n(rows.data.get(), n_values, 0.0F);
        }
        for (size_t row = 0; carries_tokens_ && row < batch.size(); ++row) {
            carry_token(inputs.tokens[row], rows.data.get() + (row + 1) * static_cast<size_t>(width_));
        }
    } else {
        std::memcpy(rows.data.get(), hidden.data(), n_values * sizeof(float));
    }
    return rows;
}

void Window::decode(const Run& run, const BatchView& batch, std::span<const int32_t> tokens,
                    bool all_outputs) {
    const size_t n = run.size();
    batch_tokens_.assign(n, 0);
    batch_positions_.resize(n);
    batch_n_seq_.assign(n, 1);
    batch_seq_.resize(n);
    batch_seq_pointers_.assign(n + 1, nullptr);
    batch_outputs_.resize(n);
    for (size_t i = 0; i < n; ++i) {
        const auto row = static_cast<size_t>(run[i]);
        batch_seq_[i] = batch.seq_ids[row];
        batch_seq_pointers_[i] = &batch_seq_[i];
        batch_outputs_[i] = static_cast<int8_t>(all_outputs || batch.outputs[row]);
        batch_positions_[i] = batch.positions[row];
        if (reads_tokens_) batch_tokens_[i] = tokens[row];
    }
    const llama_batch native{static_cast<int32_t>(n), batch_tokens_.data(), nullptr,
                             batch_positions_.data(), batch_n_seq_.data(),  batch_seq_pointers_.data(),
                             batch_outputs_.data()};
    if (residency_) residency_->begin_run(cancelled_);
    const int32_t status = llama_decode(context_.get(), native);
    if (residency_) residency_->end_run();
    if (residency_ && !residency_->failure().empty()) throw WindowFailure(residency_->failure());
    if (status == 1) throw WindowFailure("the cache has no room for the batch");
    if (status == 2) throw WindowFailure("the run was cancelled");
    if (status != 0) {
        throw WindowFailure("llama.cpp could not compute the batch (status " + std::to_string(status) + ")");
    }
}

std::string Window::forget(const BatchView& batch) {
    std::map<int32_t, int32_t> from;
    for (size_t row = 0; row < batch.size(); ++row)
        from.try_emplace(batch.seq_ids[row], batch.positions[row]);
    llama_memory_t memory = llama_get_memory(context_.get());
    std::string lost;
    for (const auto& [seq, position] : from) {
        if (llama_memory_seq_rm(memory, seq, position, -1)) continue;
        llama_memory_seq_rm(memory, seq, -1, -1);
        lost += "; sequence " + std::to_string(seq) + " had to be forgotten altogether";
    }
    return lost;
}

template <typename Body>
void Window::in_runs(const BatchView& batch, Body body) {
    cancelled_ = false;
    try {
        for (const Run& run : split_into_runs(batch.seq_ids, batch.positions, share_below_)) body(run);
    } catch (const std::exception& failure) {
        taps_.disarm();
        throw WindowFailure(failure.what() + forget(batch));
    }
    taps_.disarm();
}

Rows Window::run(const BatchView& batch, std::span<const int32_t> tokens, std::span<const float> hidden) {
    const std::lock_guard guard(lock_);
    check_open();
    if (yields_logits()) throw WindowFailure("the window that ends the model yields logits: use run_last");
    wipe_spoiled();
    check_batch(batch, tokens, hidden);
    const Inputs inputs = prepare(batch, tokens, hidden);
    Rows result = blank_states(batch, inputs, hidden);
    in_runs(batch, [&](const Run& run) {
        taps_.arm(inputs.entry, {result.data.get(), width_}, run);
        decode(run, batch, inputs.tokens, true);
        if (const std::string problem = taps_.problem(); !problem.empty()) throw WindowFailure(problem);
        for (const auto row : run)
            check_computed({result.data.get() + row * width_, static_cast<size_t>(width_)});
    });
    return result;
}

Rows Window::run_last(const BatchView& batch, std::span<const int32_t> tokens,
                      std::span<const float> hidden) {
    const std::lock_guard guard(lock_);
    check_open();
    if (!yields_logits()) throw WindowFailure("only the window that ends the model yields logits: use run");
    wipe_spoiled();
    check_batch(batch, tokens, hidden);
    std::vector<int64_t> place(batch.size(), 0);  // of each flagged row among the results
    int64_t n_rows = 0;
    for (size_t row = 0; row < batch.size(); ++row) {
        place[row] = n_rows;
        n_rows += batch.outputs[row] ? 1 : 0;
    }
    Rows result{std::make_unique_for_overwrite<float[]>(static_cast<size_t>(n_rows * n_vocab_)), n_rows,
                n_vocab_};
    const Inputs inputs = prepare(batch, tokens, hidden);
    in_runs(batch, [&](const Run& run) {
        taps_.arm(inputs.entry, {}, run);
        decode(run, batch, inputs.tokens, false);
        if (const std::string problem = taps_.problem(); !problem.empty()) throw WindowFailure(problem);
        for (size_t i = 0; i < run.size(); ++i) {
            const auto row = static_cast<size_t>(run[i]);
            if (!batch.outputs[row]) continue;
            const float* logits = llama_get_logits_ith(context_.get(), static_cast<int32_t>(i));
            if (logits == nullptr) throw WindowFailure("llama.cpp has no logits" + at_row(row));
            check_computed({logits, static_cast<size_t>(n_vocab_)});
            std::memcpy(result.data.get() + place[row] * n_vocab_, logits,
                        static_cast<size_t>(n_vocab_) * sizeof(float));
        }
        llama_synchronize(context_.get());
    });
    return result;
}

// A layer that is read from disk for every token may have been spoiled there since it was checked.
void Window::check_computed(std::span<const float> values) {
    if (!residency_ || residency().streamed == 0) return;
    const bool sound = std::none_of(values.begin(), values.end(), [](float value) {
        return (std::bit_cast<uint32_t>(value) & kAllButSign) > kExponent;
    });
    if (sound) return;
    spoiled_ = true;
    options_.residency->streamer->doubt();
    throw WindowFailure(
        "a value was computed that is not a number: layers on this device's disk may be damaged; they are "
        "checked now and made again where they are, so ask again");
}

// Numbers that are none stay in the cache when their sequence is removed, and spoil the next one there.
void Window::wipe_spoiled() {
    if (!spoiled_) return;
    llama_memory_t memory = llama_get_memory(context_.get());
    for (int32_t seq = 0; seq < options_.n_seq_max; ++seq) {
        if (llama_memory_seq_pos_max(memory, seq) >= 0) return;
    }
    llama_memory_clear(memory, true);
    spoiled_ = false;
}

void Window::cancel() {
    cancelled_ = true;
    if (options_.residency) options_.residency->streamer->wake();
}

void Window::stream(const std::vector<int64_t>& layers, uint64_t spare) {
    const std::lock_guard guard(lock_);
    check_open();
    if (!residency_ && layers.empty()) return;
    if (!residency_) throw WindowFailure("the window was loaded to stay in memory as a whole");
    try {
        residency_->stream(layers, spare);
    } catch (const WindowFailure&) {
        note_residency();
        throw;
    }
    note_residency();
}

void Window::note_residency() {
    const std::lock_guard guard(figures_lock_);
    residency_bytes_ = residency_->bytes();
    streamed_ = residency_->streamed();
}

BufferBytes Window::memory() const {
    BufferBytes bytes = memory_;
    bytes.weights += residency().resident;
    return bytes;
}

ResidencyBytes Window::residency() const {
    const std::lock_guard guard(figures_lock_);
    return residency_bytes_;
}

std::vector<int64_t> Window::streamed() const {
    const std::lock_guard guard(figures_lock_);
    return streamed_;
}

bool Window::remove(int64_t seq, int64_t from, int64_t to) {
    const std::lock_guard guard(lock_);
    check_open();
    const int32_t id = check_sequence(seq);
    if (from < 0 || (to != -1 && to < from) || to > INT32_MAX || from > INT32_MAX) {
        throw WindowFailure("cannot remove positions " + std::to_string(from) + " to " + std::to_string(to));
    }
    llama_memory_t memory = llama_get_memory(context_.get());
    const int64_t end = int64_t{llama_memory_seq_pos_max(memory, id)} + 1;
    if (from >= end || from == to) return true;
    const bool whole = from == 0 && (to == -1 || to >= end);  // this every model can do
    return llama_memory_seq_rm(memory, id, whole ? -1 : static_cast<llama_pos>(from),
                               whole ? -1 : static_cast<llama_pos>(to));
}

void Window::copy(int64_t seq, int64_t target) {
    const std::lock_guard guard(lock_);
    check_open();
    const int32_t from = check_sequence(seq);
    const int32_t to = check_sequence(target);
    if (from == to) return;
    llama_memory_t memory = llama_get_memory(context_.get());
    llama_memory_seq_rm(memory, to, -1, -1);
    llama_memory_seq_cp(memory, from, to, -1, -1);
}

void Window::keep(int64_t seq) {
    const std::lock_guard guard(lock_);
    check_open();
    const int32_t kept = check_sequence(seq);
    // llama_memory_seq_keep looks at one stream only
    for (int32_t other = 0; other < options_.n_seq_max; ++other) {
        if (other != kept) llama_memory_seq_rm(llama_get_memory(context_.get()), other, -1, -1);
    }
}

void Window::clear() {
    const std::lock_guard guard(lock_);
    check_open();
    llama_memory_clear(llama_get_memory(context_.get()), false);
}

}  // namespace edged
