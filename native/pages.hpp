// Memory by the page: reserved first, taken when it is written, given back without giving up the place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "system.hpp"

namespace edged {

constexpr uint64_t whole_pages(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

class Pages {
  public:
    Pages() = default;
    // Reads as zeros and takes no memory until written. Throws WindowFailure.
    explicit Pages(uint64_t bytes);
    ~Pages();
    Pages(Pages&& other) noexcept;
    Pages& operator=(Pages&& other) noexcept;

    char* data() const { return data_; }
    uint64_t size() const { return size_; }
    // Gives the memory of a part back (both numbers in whole pages); it reads as zeros again.
    void drop(uint64_t offset, uint64_t length);
    // Keeps a part from being swapped out; false where this process may not lock so much.
    bool lock(uint64_t offset, uint64_t length);
    void unlock(uint64_t offset, uint64_t length);

  private:
    char* data_ = nullptr;
    uint64_t size_ = 0;
};

}  // namespace edged
