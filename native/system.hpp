// What each system does in its own way; the implementation is chosen by CMake.
//
// Images are read past the page cache where the system can: what is read once per token would only push out
// what others need.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace edged {

constexpr uint64_t kPage = 4096;  // what uncached reads are aligned to, in memory and in the file

struct UncachedFile {
    int descriptor = -1;  // -1: errno says why not
    bool direct = false;  // otherwise read through the page cache, and forgotten afterwards
};

// `direct`: past the page cache, where the system and the file system allow it.
UncachedFile open_uncached(const std::string& path, bool direct);

// Takes the bytes out of the page cache, if they are in it and not waiting to be written.
void forget_cached(int descriptor, off_t offset, off_t length);

// Writes what is in memory of the file to the disk; false and errno if it cannot.
bool sync_data(int descriptor);

// The descriptor of a file of so many bytes that is in memory only; -1 where there is no such thing.
int memory_file(uint64_t bytes);

// From now on memory of some size goes back to the system when it is freed, where the C library would keep
// it.
void give_freed_memory_back();

// What the calling thread is called in a list of threads; at most 15 characters.
void name_thread(const char* name);

}  // namespace edged
