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
#include <utility>

#include "error.hpp"
#include "system.hpp"

namespace edged {

namespace {

constexpr std::array<char, 8> kMagic{'e', 'd', 'g', 'e', 'd', 'i', 'm', '1'};
constexpr uint64_t kWriteAtOnce = 4U << 20;  // bytes, before they are sent to the disk and forgotten

struct Header {
    std::array<char, 8> magic = kMagic;
    uint64_t layout = 0;
    uint64_t n_parts = 0;
    uint64_t own_sum = 0;  // of what follows the header in its page
};

constexpr size_t kMostParts = (kPage - sizeof(Header)) / sizeof(uint64_t);

[[noreturn]] void fail(const char* what, const std::string& path) {
    throw WindowFailure(std::string(what) + path + ": " + std::strerror(errno));
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
    : path_(std::move(path)), layout_(layout), parts_(std::move(parts)) {
    if (parts_.size() > kMostParts) throw WindowFailure("a layer of too many tensors to be streamed");
}

ImageFile::~ImageFile() = default;

uint64_t ImageFile::size() const {
    return parts_.empty() ? kPage : kPage + parts_.back().offset + parts_.back().length;
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
    alignas(kPage) std::array<char, kPage> page;
    if (::pread(file->descriptor, page.data(), kPage, 0) != static_cast<ssize_t>(kPage)) return false;
    Header header;
    std::memcpy(&header, page.data(), sizeof header);
    if (header.magic != kMagic || header.layout != layout_ || header.n_parts != parts_.size()) return false;
    if (header.own_sum != checksum(page.data() + sizeof header, kPage - sizeof header)) return false;
    file->sums.resize(parts_.size());
    std::memcpy(file->sums.data(), page.data() + sizeof header, parts_.size() * sizeof(uint64_t));
    const std::lock_guard guard(lock_);
    opened_ = std::move(file);
    return true;
}

// The header comes last: until it is there the file is no image.
void ImageFile::write(const std::function<const char*(size_t part)>& data_of) {
    std::array<char, kPage> page{};
    const std::string name = path_ + "." + std::to_string(::getpid()) + ".new";
    Scratch file{name, ::open(name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    if (file.descriptor < 0) {
        file.path.clear();
        fail("cannot write ", name);
    }
    Header header{kMagic, layout_, parts_.size(), 0};
    file.write(page.data(), kPage);
    for (size_t i = 0; i < parts_.size(); ++i) {
        const char* data = data_of(i);
        const uint64_t sum = checksum(data, parts_[i].length);
        std::memcpy(page.data() + sizeof header + i * sizeof sum, &sum, sizeof sum);
        file.write(data, parts_[i].length);
    }
    header.own_sum = checksum(page.data() + sizeof header, kPage - sizeof header);
    std::memcpy(page.data(), &header, sizeof header);
    if (::lseek(file.descriptor, 0, SEEK_SET) != 0) fail("cannot write ", name);
    file.write(page.data(), kPage);
    if (!sync_data(file.descriptor)) fail("cannot write ", name);
    forget_cached(file.descriptor, 0, 0);
    if (std::rename(name.c_str(), path_.c_str()) != 0) fail("cannot write ", path_);
    file.path.clear();
    if (!open()) throw WindowFailure("cannot read back " + path_);
}

void ImageFile::read(size_t part, uint64_t from, char* to, uint64_t length) const {
    const auto file = opened();
    if (!file) throw WindowFailure("cannot open " + path_);
    uint64_t offset = kPage + parts_[part].offset + from;
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
    const auto file = opened();
    if (!file) throw WindowFailure("cannot open " + path_);
    if (checksum(data, parts_[part].length) != file->sums[part]) throw WindowFailure(path_ + " is damaged");
}

}  // namespace edged
