// Reading past the page cache on Linux: O_DIRECT, which some file systems (tmpfs, for one) refuse.
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "system.hpp"

namespace edged {

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

int memory_file(uint64_t bytes) {
    const int descriptor = ::memfd_create("edged", MFD_CLOEXEC);
    if (descriptor >= 0 && ::ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) {
        ::close(descriptor);
        return -1;
    }
    return descriptor;
}

}  // namespace edged
