// A file that exists only as a header and a list of ranges of other files.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace edged {

// `length` bytes at `offset` of the composed file; zeros where `path` is empty.
struct Segment {
    uint64_t offset = 0;
    uint64_t length = 0;
    std::string path;
    uint64_t file_offset = 0;
};

// An open file descriptor, read by position.
class PartFile {
  public:
    explicit PartFile(const std::string& path);  // throws WindowFailure
    ~PartFile();
    PartFile(const PartFile&) = delete;
    PartFile& operator=(const PartFile&) = delete;

    uint64_t size() const { return size_; }
    const std::string& path() const { return path_; }
    // Reads exactly `length` bytes or throws WindowFailure, naming the file.
    void read(void* to, uint64_t length, uint64_t offset) const;

  private:
    std::string path_;
    int descriptor_ = -1;
    uint64_t size_ = 0;
};

class ComposedFile {
  public:
    // Opens every part and checks that each is long enough; throws WindowFailure.
    ComposedFile(std::string header, std::vector<Segment> segments);

    uint64_t size() const { return size_; }
    // Ranges (offset, length; ascending) that `read` passes over: it leaves the memory as it is. So libllama
    // touches none of the memory of weights that are put elsewhere.
    void pass_over(std::vector<std::pair<uint64_t, uint64_t>> ranges) { passed_over_ = std::move(ranges); }
    // Exactly these bytes; throws WindowFailure.
    void fill(char* to, size_t length, uint64_t position);
    // Bytes read at `position`, fewer only at the end of the file or of a range; -1 on an error, which
    // `error` keeps.
    ssize_t read(char* to, size_t length, uint64_t position);
    // What went wrong in `read`; empty if nothing did.
    const std::string& error() const { return error_; }

  private:
    std::string header_;
    std::vector<Segment> segments_;
    std::vector<std::pair<uint64_t, uint64_t>> passed_over_;
    std::map<std::string, std::unique_ptr<PartFile>> files_;
    uint64_t size_ = 0;
    std::string error_;
};

// A read-only stdio stream over `file`, which must outlive it. The implementation is chosen by CMake.
FILE* open_stream(ComposedFile& file);

// Where a stream stands; shared by the implementations of `open_stream`.
struct StreamState {
    ComposedFile& file;
    uint64_t position = 0;

    ssize_t read(char* to, size_t length);
    // The new position, or -1 where it would be negative.
    int64_t seek(int64_t offset, int whence);
};

}  // namespace edged
