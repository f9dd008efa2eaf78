#include "shared_pages.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "error.hpp"
#include "pages.hpp"
#include "system.hpp"

namespace edged {

namespace {

constexpr uint64_t kReal = 4U << 20;  // bytes: few enough to be no matter, many enough for few mappings

}  // namespace

SharedPages::SharedPages(uint64_t bytes) : size_(whole_pages(std::max<uint64_t>(bytes, 1))) {
    void* place =
        ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) throw WindowFailure("no room for " + std::to_string(size_) + " bytes");
    data_ = static_cast<char*>(place);
    const int memory = memory_file(kReal);
    if (memory < 0) return;
    for (uint64_t at = 0; at < size_; at += kReal) {
        ::mmap(data_ + at, std::min(kReal, size_ - at), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
               memory, 0);
    }
    ::close(memory);
}

SharedPages::~SharedPages() { ::munmap(data_, size_); }

}  // namespace edged
