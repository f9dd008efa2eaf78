// The experts of streamed layers: read when a token is routed to them, kept as long as there is room.
//
// The memory of a tensor with many experts is reserved whole, but only the experts that are used are in it,
// each at its place. Those used least recently make room.
#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <vector>

#include "image_file.hpp"
#include "pages.hpp"

namespace edged {

// One tensor's experts. Its state belongs to the cache.
class Experts {
  public:
    // The tensor is a part of `image`, and lies at `offset` of `pages`; `slice` bytes per expert.
    Experts(const ImageFile& image, size_t part, Pages& pages, uint64_t offset, uint64_t slice, int count)
        : image_(image), part_(part), pages_(pages), offset_(offset), slice_(slice), experts_(count) {}

    int count() const { return static_cast<int>(experts_.size()); }

  private:
    friend class ExpertCache;
    struct Expert {
        bool here = false;
        uint64_t reads = 0;  // since the image's checksums were last in doubt
        int holders = 0;
        uint64_t last_use = 0;
    };
    struct Range {
        uint64_t from = 0;  // whole pages within the tensor
        uint64_t to = 0;
    };
    Range pages_around(int expert) const;
    Range pages_within(int expert) const;

    const ImageFile& image_;
    const size_t part_;
    Pages& pages_;
    const uint64_t offset_;
    const uint64_t slice_;
    std::vector<Expert> experts_;
};

struct ExpertCounts {
    uint64_t read = 0;  // bytes from disk
    uint64_t held = 0;  // bytes in memory now
    uint64_t waits = 0;
    uint64_t waited_us = 0;
};

class ExpertCache {
  public:
    // Bytes to be kept; more are only as long as a run needs them at once.
    void set_room(uint64_t bytes);
    // Reads those of `wanted` that are not here, of every tensor in `sets`, and keeps them until `release`.
    // Throws WindowFailure.
    void hold(const std::vector<Experts*>& sets, const std::set<int>& wanted);
    void release(const std::vector<Experts*>& sets, const std::set<int>& wanted);
    // Drops and checks again what is read: see `Streamer::doubt`.
    void doubt();
    // While `sets` exist they are known here.
    void add(Experts& set);
    // Gives the memory of all its experts back.
    void remove(Experts& set);

    ExpertCounts counts() const;

  private:
    void make_room(uint64_t bytes);
    void drop(Experts& set, int expert);

    mutable std::mutex lock_;
    std::vector<Experts*> sets_;
    uint64_t room_ = 0;
    uint64_t clock_ = 0;
    ExpertCounts counts_;
};

}  // namespace edged
