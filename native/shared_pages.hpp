// Addresses that are all backed by the same few pages: a place for bytes that nobody wants.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edged {

class SharedPages {
  public:
    // Takes little memory however much is written to it; where the system has no way to do that, as much as
    // is written. Throws WindowFailure.
    explicit SharedPages(uint64_t bytes);
    ~SharedPages();
    SharedPages(const SharedPages&) = delete;
    SharedPages& operator=(const SharedPages&) = delete;

    char* data() const { return data_; }

  private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace edged
