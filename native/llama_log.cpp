#include "llama_log.hpp"

#include <llama.h>

#include <deque>
#include <mutex>

namespace edged {

namespace {

constexpr size_t kMostLines = 4096;  // a load logs some hundreds; older ones are dropped
constexpr size_t kMostErrors = 3;    // lines of a load error that are worth showing

std::mutex lock;
std::deque<std::pair<int, std::string>> lines;
thread_local bool collecting = false;
thread_local std::deque<std::string> errors;

std::string trimmed(std::string text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    return text;
}

// Called by llama.cpp from any thread; must not throw.
void on_log(ggml_log_level level, const char* text, void* /*unused*/) {
    try {
        const std::lock_guard guard(lock);
        if (level == GGML_LOG_LEVEL_CONT && !lines.empty()) {
            lines.back().second += text;
        } else {
            lines.emplace_back(static_cast<int>(level), text);
            if (lines.size() > kMostLines) lines.pop_front();
        }
        if (collecting && level == GGML_LOG_LEVEL_ERROR) {
            errors.push_back(trimmed(text));
            if (errors.size() > kMostErrors) errors.pop_front();
        }
    } catch (const std::exception&) {
        // A lost log line is better than an exception inside C code.
    }
}

}  // namespace

void take_over_log() { llama_log_set(on_log, nullptr); }

std::vector<std::pair<int, std::string>> drain_log() {
    const std::lock_guard guard(lock);
    std::vector<std::pair<int, std::string>> taken;
    taken.reserve(lines.size());
    for (auto& [level, text] : lines) taken.emplace_back(level, trimmed(std::move(text)));
    lines.clear();
    return taken;
}

ErrorLines::ErrorLines() {
    errors.clear();
    collecting = true;
}

ErrorLines::~ErrorLines() {
    collecting = false;
    errors.clear();
}

std::string ErrorLines::summary(const std::string& otherwise) const {
    std::string text;
    for (const std::string& line : errors) text += (text.empty() ? "" : "; ") + line;
    return text.empty() ? otherwise : text;
}

}  // namespace edged
