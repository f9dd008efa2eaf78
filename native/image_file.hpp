// The weights of one layer on disk exactly as they lie in memory, repacked for this processor: what is read
// for every token is computed with as it is.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace edged {

// One tensor's place in an image; whole pages. Pieces of it that are read alone are checked alone.
struct ImagePart {
    uint64_t offset = 0;
    uint64_t length = 0;
    uint64_t n_pieces = 1;
    uint64_t piece_bytes = 0;  // 0: all of them together are the part
};

class ImageFile {
  public:
    // `layout` tells apart images of the same weights that are laid out in another way.
    ImageFile(std::string path, uint64_t layout, std::vector<ImagePart> parts);
    ~ImageFile();

    const std::string& path() const { return path_; }
    const ImagePart& part(size_t index) const { return parts_[index]; }
    uint64_t size() const;  // bytes on disk

    // Whether there is an image of this layout; opens it. The parts' content is not looked at. Some file
    // systems refuse direct reads only when they are asked for one.
    bool open() { return open(true) || open(false); }
    // Whether it has been opened: what is read goes by that, even if the file has lost its name since.
    bool is_open() const { return opened() != nullptr; }
    // Writes what `data_of` gives for each part, in order, under a temporary name, then opens it. What it
    // gives has to last until it is asked again. Throws WindowFailure.
    void write(const std::function<const char*(size_t part)>& data_of);
    // `length` bytes of a part, from `from` on; all in whole pages, also `to`. Throws WindowFailure.
    void read(size_t part, uint64_t from, char* to, uint64_t length) const;
    // Throws WindowFailure unless `data` is what was written as this part, or as one piece of it.
    void check(size_t part, const char* data) const;
    void check(size_t part, uint64_t piece, const char* data) const;

  private:
    struct Opened;
    uint64_t header_bytes() const;
    uint64_t piece_bytes(size_t part) const;
    bool open(bool direct);
    std::shared_ptr<const Opened> opened() const;

    const std::string path_;
    const uint64_t layout_;
    const std::vector<ImagePart> parts_;
    std::vector<size_t> first_sums_;  // of each part among all pieces, and the number of pieces
    mutable std::mutex lock_;         // of opened_: an image may be written anew while others read it
    std::shared_ptr<const Opened> opened_;
};

// Reads of one thing for each that is checked: a disk may spoil what was sound when it was first read.
constexpr uint64_t kCheckEvery = 8;

// Tells damage from soundness, not friend from foe.
uint64_t checksum(const char* data, uint64_t length, uint64_t seed = 0);

}  // namespace edged
