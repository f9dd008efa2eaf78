// Reads the streamed layers of all windows of a device, round and round, a fixed amount ahead of the one that
// computes.
//
// What is read lands in *slots*, of which there are as many as the read-ahead budget allows. A unit (a few
// tensors of one layer) takes a slot from when its reading begins until its last use in a run; then the slot
// is free for the unit that is needed next. So the order of reading follows the order of use, across windows
// and across tokens, and memory is bounded whatever the disk and the processor do.
//
// Two slots may overlap: what is read ahead then waits with the part that lies where the unit before it
// still is. Disks are so much slower than memory that this costs a token next to nothing, and what the
// overlap saves keeps a tensor in memory that need not be read at all.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "expert_cache.hpp"
#include "image_file.hpp"
#include "pages.hpp"

namespace edged {

// Tensors that are read, held and dropped together. Its state belongs to the streamer.
class StreamUnit {
  public:
    struct Piece {
        const ImageFile* image = nullptr;
        size_t part = 0;
        uint64_t place = 0;  // within the unit
    };
    // The part is read in pieces of `chunk` bytes: see `Streamer::chunk_bytes`. Parts that follow one another
    // in the image are read as one.
    void add(const ImageFile& image, size_t part, uint64_t chunk);

    uint64_t bytes() const { return bytes_; }
    const std::vector<Piece>& pieces() const { return pieces_; }

  private:
    friend class Streamer;
    enum class State { absent, loading, ready };
    struct Chunk {
        size_t piece = 0;
        uint64_t from = 0;
        uint64_t length = 0;
    };
    // Whether chunks that follow one another here do so in the image too.
    bool in_one_read(const Chunk& one, const Chunk& next) const;

    std::vector<Piece> pieces_;
    std::vector<Chunk> chunks_;
    uint64_t bytes_ = 0;
    State state_ = State::absent;
    int slot_ = -1;
    uint64_t turn_ = 0;  // when it took the slot
    int holders_ = 0;
    bool used_ = false;   // since it was read
    uint64_t reads_ = 0;  // since the image's checksums were last in doubt
    size_t chunks_taken_ = 0;
    size_t chunks_read_ = 0;
    std::string error_;
};

struct StreamCounts {
    uint64_t read = 0;       // bytes from disk
    uint64_t wasted = 0;     // bytes of it that made room unused
    uint64_t waits = 0;      // times that a run had to wait
    uint64_t waited_us = 0;  // microseconds
    uint64_t slots = 0;      // bytes that slots and experts take
};

constexpr uint64_t kSliceBytes = 1U << 20;  // the least that a disk should be asked for at once

class Streamer {
  public:
    // `read_ahead`: bytes that all slots together may take; there are two slots at least, which may overlap.
    // Matrices are read in slices of at most `slice_bytes` where their kernels allow that.
    explicit Streamer(uint64_t read_ahead, uint64_t slice_bytes = kSliceBytes);
    ~Streamer();
    Streamer(const Streamer&) = delete;
    Streamer& operator=(const Streamer&) = delete;

    uint64_t slice_bytes() const { return slice_bytes_; }
    // As much as units should have where one tensor or slice is less: so that some of them fit, and disks are
    // asked for large pieces.
    uint64_t unit_bytes() const;
    // What slots that hold more than a slice take at least, beyond the read-ahead.
    uint64_t beyond_read_ahead(uint64_t slot_bytes) const;
    // For tensors of at most `slot_bytes`. Several chunks are read at once where nothing is in the way.
    static uint64_t chunk_bytes(uint64_t slot_bytes);
    // The units of `owner` from now on, in order of use; owners take their turns by `order`. No unit may be
    // larger than `slot_bytes`. `together`: runs hold several at once, so that slots may not overlap. Waits
    // for reads under way. Throws WindowFailure.
    void set_units(const void* owner, int order, std::vector<StreamUnit*> units, uint64_t slot_bytes,
                   bool together);
    // Changes the read-ahead; waits for runs in progress.
    void set_read_ahead(uint64_t bytes);
    // The experts of all windows, which share the read-ahead with the slots.
    ExpertCache& experts() { return experts_; }
    // Bytes of the read-ahead that `owner` spends otherwise: on what else a streamed mixture keeps in memory.
    void spend(const void* owner, uint64_t bytes);
    // `owner` begins a run: its first unit is the next one to be used.
    void begin(const void* owner);
    // Where the unit lies; it stays until `release`. Waits for it. Throws WindowFailure where it cannot be
    // read or `cancelled` becomes true (see `wake`).
    char* hold(StreamUnit& unit, const std::atomic<bool>& cancelled);
    // `done`: this run needs it no more.
    void release(StreamUnit& unit, bool done);
    // What was computed cannot be right: everything is read again, and checked.
    void doubt();
    // Makes those that wait look at their `cancelled`.
    void wake();

    StreamCounts counts() const;
    // Ends the reading threads; idempotent. No window may run any more.
    void close();

  private:
    using Lock = std::unique_lock<std::mutex>;
    struct Slot {
        uint64_t at = 0;        // in `arena_`
        bool from_end = false;  // its units end where it ends, and are read from there
        bool spare = false;     // beyond the budget, for a run that needs more at once than fits
        Pages pages;            // of a spare slot, which is not in the arena
        StreamUnit* unit = nullptr;
    };
    struct Owner {
        const void* who = nullptr;
        int order = 0;
        std::vector<StreamUnit*> units;
    };

    void read_on();
    StreamUnit* next_to_read();
    void clear_the_way(StreamUnit& unit);
    void take_slot(StreamUnit& unit, int slot);
    int free_slot() const;
    int slot_for_wanted();
    int spare_slot();
    void vacate(StreamUnit& unit);
    const StreamUnit::Chunk& chunk_of(const StreamUnit& unit, size_t number) const;
    uint64_t arena_place(const StreamUnit& unit) const;
    char* place_of(const StreamUnit& unit);
    StreamUnit* in_the_way(const StreamUnit& unit, size_t number) const;
    bool stands_still(const StreamUnit& unit) const;
    void wait_until_nothing_loads(Lock& lock);
    void read_some(StreamUnit& unit, Lock& lock);
    void share_read_ahead();
    void make_slots(uint64_t slot_bytes, Lock& lock);
    size_t distance(const StreamUnit& unit) const;

    uint64_t read_ahead_;
    const uint64_t slice_bytes_;
    mutable std::mutex lock_;
    std::condition_variable work_;
    std::condition_variable news_;
    std::vector<Owner> owners_;
    std::vector<StreamUnit*> order_;
    size_t next_ = 0;  // in order_: the unit expected to be used next
    std::set<StreamUnit*> wanted_;
    std::vector<StreamUnit*> loading_;
    Pages arena_;
    std::vector<Slot> slots_;
    uint64_t slot_bytes_ = 0;
    bool together_ = false;
    uint64_t turns_ = 0;
    int changing_ = 0;  // nothing new is read while units change
    bool closed_ = false;
    StreamCounts counts_;
    ExpertCache experts_;
    std::map<const void*, uint64_t> spent_;
    std::vector<std::thread> readers_;
};

}  // namespace edged
