// Reading past the page cache on Linux: O_DIRECT, which some file systems (tmpfs, for one) refuse.
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "system.hpp"

namespace edged {

namespace {

constexpr int kOwnMapping = 1 << 20;  // bytes: larger pieces come straight from the system, and return to it
constexpr int kKeptFree = 8 << 20;    // so that smaller ones are not taken and returned for every token

}  // namespace

UncachedFile open_uncached(const std::string& path, bool direct) {
    if (direct) {
        const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        if (descriptor >= 0) return {descriptor, true};
    }
    return {::open(path.c_str(), O_RDONLY | O_CLOEXEC), false};
}

void forget_cached(int descriptor, off_t offset, off_t length) {
    ::posix_fadvise(descriptor, offset, length, POSIX_FADV_DONTNEED);
}

bool sync_data(int descriptor) { return ::fdatasync(descriptor) == 0; }

void name_thread(const char* name) { ::pthread_setname_np(::pthread_self(), name); }

// glibc learns from what is freed to keep ever larger pieces. libllama reserves tens of megabytes per window
// that it hardly touches; where these are pieces that were in use before, they are memory all the same.
void give_freed_memory_back() {
#ifdef __GLIBC__
    ::mallopt(M_MMAP_THRESHOLD, kOwnMapping);
    ::mallopt(M_TRIM_THRESHOLD, kKeptFree);
#endif
}

int memory_file(uint64_t bytes) {
    const int descriptor = ::memfd_create("edged", MFD_CLOEXEC);
    if (descriptor >= 0 && ::ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) {
        ::close(descriptor);
        return -1;
    }
    return descriptor;
}

}  // namespace edged
