#include "image_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "error.hpp"
#include "pages.hpp"
#include "system.hpp"

namespace edged {

namespace {

constexpr std::array<char, 8> kMagic{'e', 'd', 'g', 'e', 'd', 'i', 'm', '2'};
constexpr uint64_t kWriteAtOnce = 4U << 20;  // bytes, before they are sent to the disk and forgotten

struct Header {
    std::array<char, 8> magic = kMagic;
    uint64_t layout = 0;
    uint64_t n_sums = 0;
    uint64_t own_sum = 0;  // of the checksums that follow, to the end of their last page
};

constexpr size_t kMostSums = 1U << 20;

[[noreturn]] void fail(const char* what, const std::string& path) {
    const bool full = errno == ENOSPC || errno == EDQUOT;
    throw WindowFailure(std::string(what) + path + ": " + std::strerror(errno) +
                        (full ? "; free some space there, or allow more memory (--memory)" : ""));
}

// Closes the descriptor, and removes the file unless it was renamed.
struct Scratch {
    std::string path;
    int descriptor = -1;
    ~Scratch() {
        if (descriptor >= 0) ::close(descriptor);
        if (!path.empty()) ::unlink(path.c_str());
    }
    void write(const char* from, uint64_t length) {
        while (length > 0) {
            const ssize_t done = ::write(descriptor, from, std::min(length, kWriteAtOnce));
            if (done < 0 && errno == EINTR) continue;
            if (done < 0) fail("cannot write ", path);
            from += done;
            length -= static_cast<uint64_t>(done);
        }
    }
};

}  // namespace

struct ImageFile::Opened {
    int descriptor = -1;
    bool direct = false;
    std::vector<uint64_t> sums;
    ~Opened() {
        if (descriptor >= 0) ::close(descriptor);
    }
};

uint64_t checksum(const char* data, uint64_t length, uint64_t seed) {
    constexpr uint64_t kPrime = 0x9e3779b97f4a7c15;
    std::array<uint64_t, 4> lanes{seed + 1, seed + 2, seed + 3, seed + 4};
    uint64_t at = 0;
    for (; at + 32 <= length; at += 32) {
        std::array<uint64_t, 4> words;
        std::memcpy(words.data(), data + at, 32);
        for (size_t i = 0; i < 4; ++i) lanes[i] = std::rotl((lanes[i] ^ words[i]) * kPrime, 31);
    }
    uint64_t sum = length * kPrime;
    for (; at < length; ++at) sum = std::rotl((sum ^ static_cast<unsigned char>(data[at])) * kPrime, 31);
    for (const uint64_t lane : lanes) sum = std::rotl((sum ^ lane) * kPrime, 31);
    return sum ^ (sum >> 32);
}

ImageFile::ImageFile(std::string path, uint64_t layout, std::vector<ImagePart> parts)
    : path_(std::move(path)), layout_(layout), parts_(std::move(parts)), first_sums_{0} {
    for (const ImagePart& part : parts_) first_sums_.push_back(first_sums_.back() + part.n_pieces);
    if (first_sums_.back() > kMostSums) throw WindowFailure("a layer of too many tensors to be streamed");
}

ImageFile::~ImageFile() = default;

uint64_t ImageFile::header_bytes() const {
    return (sizeof(Header) + first_sums_.back() * sizeof(uint64_t) + kPage - 1) / kPage * kPage;
}

uint64_t ImageFile::piece_bytes(size_t part) const {
    return parts_[part].piece_bytes > 0 ? parts_[part].piece_bytes : parts_[part].length;
}

uint64_t ImageFile::size() const {
    return header_bytes() + (parts_.empty() ? 0 : parts_.back().offset + parts_.back().length);
}

std::shared_ptr<const ImageFile::Opened> ImageFile::opened() const {
    const std::lock_guard guard(lock_);
    return opened_;
}

bool ImageFile::open(bool direct) {
    auto file = std::make_shared<Opened>();
    const UncachedFile uncached = open_uncached(path_, direct);
    file->descriptor = uncached.descriptor;
    file->direct = uncached.direct;
    struct stat status{};
    if (file->descriptor < 0 || ::fstat(file->descriptor, &status) != 0 ||
        static_cast<uint64_t>(status.st_size) != size()) {
        return false;
    }
    Pages pages(header_bytes());
    const char* const data = pages.data();
    if (::pread(file->descriptor, pages.data(), pages.size(), 0) != static_cast<ssize_t>(pages.size())) {
        return false;
    }
    Header header;
    std::memcpy(&header, data, sizeof header);
    if (header.magic != kMagic || header.layout != layout_ || header.n_sums != first_sums_.back())
        return false;
    if (header.own_sum != checksum(data + sizeof header, pages.size() - sizeof header)) return false;
    file->sums.resize(first_sums_.back());
    std::memcpy(file->sums.data(), data + sizeof header, file->sums.size() * sizeof(uint64_t));
    const std::lock_guard guard(lock_);
    opened_ = std::move(file);
    return true;
}

// The header comes last: until it is there the file is no image.
void ImageFile::write(const std::function<const char*(size_t part)>& data_of) {
    std::vector<char> top(header_bytes(), 0);
    const std::string name = path_ + "." + std::to_string(::getpid()) + ".new";
    std::error_code ignored;  // if there is no folder then, it is said of the file
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
    Scratch file{name, ::open(name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    if (file.descriptor < 0) {
        file.path.clear();
        fail("cannot write ", name);
    }
    Header header{kMagic, layout_, first_sums_.back(), 0};
    file.write(top.data(), top.size());
    for (size_t part = 0; part < parts_.size(); ++part) {
        const char* data = data_of(part);
        for (uint64_t piece = 0; piece < parts_[part].n_pieces; ++piece) {
            const uint64_t sum = checksum(data + piece * piece_bytes(part), piece_bytes(part));
            const size_t number = first_sums_[part] + piece;
            std::memcpy(top.data() + sizeof header + number * sizeof sum, &sum, sizeof sum);
        }
        file.write(data, parts_[part].length);
    }
    header.own_sum = checksum(top.data() + sizeof header, top.size() - sizeof header);
    std::memcpy(top.data(), &header, sizeof header);
    if (::lseek(file.descriptor, 0, SEEK_SET) != 0) fail("cannot write ", name);
    file.write(top.data(), top.size());
    if (!sync_data(file.descriptor)) fail("cannot write ", name);
    forget_cached(file.descriptor, 0, 0);
    if (std::rename(name.c_str(), path_.c_str()) != 0) fail("cannot write ", path_);
    file.path.clear();
    if (!open()) throw WindowFailure("cannot read back " + path_);
}

void ImageFile::read(size_t part, uint64_t from, char* to, uint64_t length) const {
    const auto file = opened();
    if (!file) throw WindowFailure("cannot open " + path_);
    uint64_t offset = header_bytes() + parts_[part].offset + from;
    const off_t begin = static_cast<off_t>(offset);
    const uint64_t whole = length;
    while (length > 0) {
        const ssize_t got = ::pread(file->descriptor, to, length, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail("cannot read ", path_);
        if (got == 0) throw WindowFailure(path_ + " has been cut short while it was in use");
        to += got;
        offset += static_cast<uint64_t>(got);
        length -= static_cast<uint64_t>(got);
    }
    if (!file->direct) forget_cached(file->descriptor, begin, static_cast<off_t>(whole));
}

void ImageFile::check(size_t part, const char* data) const {
    for (uint64_t piece = 0; piece < parts_[part].n_pieces; ++piece) {
        check(part, piece, data + piece * piece_bytes(part));
    }
}

void ImageFile::check(size_t part, uint64_t piece, const char* data) const {
    const auto file = opened();
    if (!file) throw WindowFailure("cannot open " + path_);
    if (checksum(data, piece_bytes(part)) != file->sums[first_sums_[part] + piece]) {
        throw WindowFailure(path_ + " is damaged");
    }
}

}  // namespace edged
