// llama.cpp's log: kept in a queue until Python asks, so that no Python code runs inside llama.cpp.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace edged {

// Makes llama.cpp and ggml log into the queue. Repeated before each load: importing llama_cpp resets it.
void take_over_log();

// The queued lines as (ggml log level, text), oldest first; empties the queue.
std::vector<std::pair<int, std::string>> drain_log();

// Collects the error lines that the calling thread causes while it lives.
class ErrorLines {
  public:
    ErrorLines();
    ~ErrorLines();
    ErrorLines(const ErrorLines&) = delete;
    ErrorLines& operator=(const ErrorLines&) = delete;
    // The last few lines in one, or `otherwise` if there were none.
    std::string summary(const std::string& otherwise) const;
};

}  // namespace edged
