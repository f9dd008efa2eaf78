#include "pages.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "error.hpp"

namespace edged {

namespace {

constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

}  // namespace

Pages::Pages(uint64_t bytes) : size_(whole_pages(bytes)) {
    if (size_ == 0) return;
    void* place = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, kReserve, -1, 0);
    if (place == MAP_FAILED) {
        throw WindowFailure("no room for " + std::to_string(size_) +
                            " bytes of weights: " + std::strerror(errno));
    }
    data_ = static_cast<char*>(place);
}

Pages::~Pages() {
    if (data_ != nullptr) ::munmap(data_, size_);
}

Pages::Pages(Pages&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Pages& Pages::operator=(Pages&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

void Pages::drop(uint64_t offset, uint64_t length) {
    // Mapping anew does on every system what MADV_DONTNEED does on Linux alone.
    if (length == 0) return;
    ::mmap(data_ + offset, length, PROT_READ | PROT_WRITE, kReserve | MAP_FIXED, -1, 0);
}

bool Pages::lock(uint64_t offset, uint64_t length) {
    return length == 0 || ::mlock(data_ + offset, length) == 0;
}

void Pages::unlock(uint64_t offset, uint64_t length) {
    if (length > 0) ::munlock(data_ + offset, length);
}

}  // namespace edged
