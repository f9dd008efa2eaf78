#include "composed_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.hpp"

namespace edged {

PartFile::PartFile(const std::string& path) : path_(path) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) {
        throw WindowFailure("cannot open " + path + ": " + std::strerror(errno));
    }
    struct stat status{};
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
        ::close(descriptor_);
        throw WindowFailure("not a regular file: " + path);
    }
    size_ = static_cast<uint64_t>(status.st_size);
}

PartFile::~PartFile() { ::close(descriptor_); }

void PartFile::read(void* to, uint64_t length, uint64_t offset) const {
    auto* at = static_cast<char*>(to);
    while (length > 0) {
        const ssize_t got = ::pread(descriptor_, at, length, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw WindowFailure("cannot read " + path_ + ": " + std::strerror(errno));
        if (got == 0) throw WindowFailure(path_ + " has been cut short while it was in use");
        at += got;
        offset += static_cast<uint64_t>(got);
        length -= static_cast<uint64_t>(got);
    }
}

ComposedFile::ComposedFile(std::string header, std::vector<Segment> segments)
    : header_(std::move(header)), segments_(std::move(segments)), size_(header_.size()) {
    for (const Segment& segment : segments_) {
        if (segment.offset < size_ || segment.length > UINT64_MAX / 2 - segment.offset) {
            throw WindowFailure("the segments of the window overlap");
        }
        size_ = segment.offset + segment.length;
        if (segment.path.empty()) continue;
        auto& file = files_[segment.path];
        if (!file) file = std::make_unique<PartFile>(segment.path);
        if (segment.file_offset > file->size() || segment.length > file->size() - segment.file_offset) {
            throw WindowFailure(segment.path + " is too short: " + std::to_string(file->size()) + " bytes");
        }
    }
}

void ComposedFile::fill(char* to, size_t length, uint64_t position) {
    if (position < header_.size()) {
        const size_t part = std::min<uint64_t>(length, header_.size() - position);
        std::memcpy(to, header_.data() + position, part);
        to += part;
        length -= part;
        position += part;
    }
    std::memset(to, 0, length);
    auto segment = std::upper_bound(segments_.begin(), segments_.end(), position,
                                    [](uint64_t at, const Segment& s) { return at < s.offset + s.length; });
    for (; segment != segments_.end() && segment->offset < position + length; ++segment) {
        if (segment->path.empty()) continue;
        const uint64_t begin = std::max(position, segment->offset);
        const uint64_t end = std::min(position + length, segment->offset + segment->length);
        files_.at(segment->path)
            ->read(to + (begin - position), end - begin, segment->file_offset + (begin - segment->offset));
    }
}

ssize_t ComposedFile::read(char* to, size_t length, uint64_t position) {
    if (position >= size_) return 0;
    length = std::min<uint64_t>(length, size_ - position);
    const auto range = std::upper_bound(passed_over_.begin(), passed_over_.end(), position,
                                        [](uint64_t at, const auto& r) { return at < r.first + r.second; });
    if (range != passed_over_.end() && range->first <= position) {
        return static_cast<ssize_t>(std::min<uint64_t>(length, range->first + range->second - position));
    }
    if (range != passed_over_.end()) length = std::min<uint64_t>(length, range->first - position);
    try {
        fill(to, length, position);
    } catch (const std::exception& failure) {
        error_ = failure.what();
        errno = EIO;
        return -1;
    }
    return static_cast<ssize_t>(length);
}

ssize_t StreamState::read(char* to, size_t length) {
    const ssize_t got = file.read(to, length, position);
    if (got > 0) position += static_cast<uint64_t>(got);
    return got;
}

int64_t StreamState::seek(int64_t offset, int whence) {
    const int64_t base = whence == SEEK_SET   ? 0
                         : whence == SEEK_CUR ? static_cast<int64_t>(position)
                                              : static_cast<int64_t>(file.size());
    if (base + offset < 0) {
        errno = EINVAL;
        return -1;
    }
    position = static_cast<uint64_t>(base + offset);
    return base + offset;
}

}  // namespace edged
