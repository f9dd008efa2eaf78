#include "streamer.hpp"

#include <algorithm>
#include <chrono>

#include "error.hpp"
#include "system.hpp"

namespace edged {

namespace {

constexpr uint64_t kMostRead = 4U << 20;   // bytes: large enough for any disk, small enough to share out
constexpr uint64_t kUnits = 4;             // of the read-ahead
constexpr uint64_t kMostChunk = 1U << 20;  // by so much a unit may come nearer to the one in its way
constexpr uint64_t kChunks = 4;            // of the largest unit, at least
constexpr uint64_t kLeastAhead = 2;        // chunks
constexpr uint64_t kLeastForExperts = 4;   // one part in so many of the read-ahead
constexpr int kReaders = 2;                // so that a disk has its next order before it has filled the last

// Of two slots that overlap.
uint64_t least_bytes(uint64_t slot_bytes) {
    return slot_bytes + kLeastAhead * Streamer::chunk_bytes(slot_bytes);
}

}  // namespace

void StreamUnit::add(const ImageFile& image, size_t part, uint64_t chunk) {
    const uint64_t length = image.part(part).length;
    for (uint64_t from = 0; from < length; from += chunk) {
        chunks_.push_back({pieces_.size(), from, std::min(chunk, length - from)});
    }
    pieces_.push_back({&image, part, bytes_});
    bytes_ += length;
}

bool StreamUnit::in_one_read(const Chunk& one, const Chunk& next) const {
    const Piece& a = pieces_[one.piece];
    const Piece& b = pieces_[next.piece];
    return a.image == b.image &&
           a.image->part(a.part).offset - a.place == b.image->part(b.part).offset - b.place;
}

Streamer::Streamer(uint64_t read_ahead, uint64_t slice_bytes)
    : read_ahead_(read_ahead), slice_bytes_(slice_bytes) {
    share_read_ahead();
}

Streamer::~Streamer() { close(); }

uint64_t Streamer::unit_bytes() const {
    const Lock lock(lock_);
    return std::min(kMostRead, read_ahead_ / kUnits / kPage * kPage);
}

uint64_t Streamer::beyond_read_ahead(uint64_t slot_bytes) const {
    const Lock lock(lock_);
    if (slot_bytes <= slice_bytes_) return 0;
    const uint64_t least = least_bytes(slot_bytes);
    return least > read_ahead_ ? least - read_ahead_ : 0;
}

uint64_t Streamer::chunk_bytes(uint64_t slot_bytes) {
    return std::clamp(whole_pages(slot_bytes / kChunks), kPage, kMostChunk);
}

void Streamer::close() {
    {
        const Lock lock(lock_);
        closed_ = true;
    }
    work_.notify_all();
    news_.notify_all();
    for (std::thread& reader : readers_) reader.join();
    readers_.clear();
}

void Streamer::set_units(const void* owner, int order, std::vector<StreamUnit*> units, uint64_t slot_bytes,
                         bool together) {
    Lock lock(lock_);
    ++changing_;
    wait_until_nothing_loads(lock);
    const StreamUnit* next = order_.empty() ? nullptr : order_[next_];
    for (Slot& slot : slots_) {
        if (slot.unit != nullptr && std::any_of(owners_.begin(), owners_.end(), [&](const Owner& known) {
                return known.who == owner && std::count(known.units.begin(), known.units.end(), slot.unit);
            })) {
            vacate(*slot.unit);
        }
    }
    std::erase_if(owners_, [&](const Owner& known) { return known.who == owner; });
    const bool streams = !units.empty();
    if (streams) owners_.push_back({owner, order, std::move(units)});
    std::stable_sort(owners_.begin(), owners_.end(),
                     [](const Owner& a, const Owner& b) { return a.order < b.order; });
    order_.clear();
    for (const Owner& known : owners_) order_.insert(order_.end(), known.units.begin(), known.units.end());
    const auto found = std::find(order_.begin(), order_.end(), next);
    next_ = found == order_.end() ? 0 : static_cast<size_t>(found - order_.begin());
    try {
        if (order_.empty()) {
            slots_.clear();
            arena_ = Pages();
            slot_bytes_ = counts_.slots = 0;
            together_ = false;
            share_read_ahead();
        } else if (streams && (slot_bytes > slot_bytes_ || (together && !together_))) {
            together_ |= together;
            make_slots(std::max(slot_bytes, slot_bytes_), lock);
        }
        while (streams && readers_.size() < kReaders) readers_.emplace_back([this] { read_on(); });
    } catch (...) {
        --changing_;
        throw;
    }
    --changing_;
    work_.notify_all();
}

// Larger slots for everybody; what the old ones hold is read again.
void Streamer::make_slots(uint64_t slot_bytes, Lock& lock) {
    news_.wait(lock, [&] {
        return std::all_of(slots_.begin(), slots_.end(),
                           [](const Slot& slot) { return slot.unit == nullptr || slot.unit->holders_ == 0; });
    });
    for (Slot& slot : slots_) {
        if (slot.unit != nullptr) vacate(*slot.unit);
    }
    slots_.clear();
    arena_ = Pages();
    slot_bytes_ = whole_pages(slot_bytes);
    const uint64_t n_slots = std::max<uint64_t>(2, read_ahead_ / slot_bytes_);
    uint64_t total = n_slots * slot_bytes_;
    if (n_slots == 2 && !together_) {
        total = std::min(total, std::max(least_bytes(slot_bytes_), whole_pages(read_ahead_)));
    }
    arena_ = Pages(total);
    for (uint64_t i = 0; i < n_slots; ++i) {
        const uint64_t last = total - slot_bytes_;
        slots_.push_back({std::min(i * slot_bytes_, last), i * slot_bytes_ > last, false, Pages(), nullptr});
    }
    counts_.slots = total;
    share_read_ahead();
}

void Streamer::set_read_ahead(uint64_t bytes) {
    Lock lock(lock_);
    if (bytes == read_ahead_) return;
    read_ahead_ = bytes;
    share_read_ahead();
    if (slot_bytes_ == 0) return;
    ++changing_;
    wait_until_nothing_loads(lock);
    try {
        make_slots(slot_bytes_, lock);
    } catch (...) {
        --changing_;
        throw;
    }
    --changing_;
    work_.notify_all();
}

void Streamer::spend(const void* owner, uint64_t bytes) {
    const Lock lock(lock_);
    if (bytes == 0) {
        spent_.erase(owner);
    } else {
        spent_[owner] = bytes;
    }
    share_read_ahead();
}

// Experts get what is left, and a part in any case: with none at all every token would read all of its own.
void Streamer::share_read_ahead() {
    uint64_t spent = counts_.slots;
    for (const auto& [owner, bytes] : spent_) spent += bytes;
    const uint64_t least = read_ahead_ / kLeastForExperts;
    experts_.set_room(read_ahead_ > spent ? std::max(least, read_ahead_ - spent) : least);
}

void Streamer::begin(const void* owner) {
    const Lock lock(lock_);
    for (const Owner& known : owners_) {
        if (known.who != owner) continue;
        const auto first = std::find(order_.begin(), order_.end(), known.units.front());
        next_ = static_cast<size_t>(first - order_.begin());
    }
    work_.notify_all();
}

char* Streamer::hold(StreamUnit& unit, const std::atomic<bool>& cancelled) {
    Lock lock(lock_);
    if (unit.state_ != StreamUnit::State::ready) {
        const auto since = std::chrono::steady_clock::now();
        if (unit.state_ == StreamUnit::State::absent) unit.error_.clear();
        wanted_.insert(&unit);
        work_.notify_all();
        news_.wait(lock, [&] {
            const bool failed = unit.state_ == StreamUnit::State::absent && !unit.error_.empty();
            return unit.state_ == StreamUnit::State::ready || failed || cancelled || closed_;
        });
        wanted_.erase(&unit);
        const auto waited = std::chrono::steady_clock::now() - since;
        ++counts_.waits;
        counts_.waited_us +=
            static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(waited).count());
        if (unit.state_ != StreamUnit::State::ready) {
            throw WindowFailure(unit.error_.empty() ? "the run was cancelled" : unit.error_);
        }
    }
    ++unit.holders_;
    unit.used_ = true;
    const auto place = std::find(order_.begin(), order_.end(), &unit);
    next_ = (static_cast<size_t>(place - order_.begin()) + 1) % order_.size();
    work_.notify_all();
    return place_of(unit);
}

void Streamer::release(StreamUnit& unit, bool done) {
    const Lock lock(lock_);
    --unit.holders_;
    if (done && unit.holders_ == 0) vacate(unit);
    work_.notify_all();
    news_.notify_all();
}

void Streamer::doubt() {
    const Lock lock(lock_);
    for (StreamUnit* unit : order_) {
        unit->reads_ = 0;
        if (unit->state_ == StreamUnit::State::ready && unit->holders_ == 0) vacate(*unit);
    }
    experts_.doubt();
    work_.notify_all();
}

void Streamer::wake() {
    const Lock lock(lock_);
    news_.notify_all();
}

StreamCounts Streamer::counts() const {
    const Lock lock(lock_);
    const ExpertCounts experts = experts_.counts();
    StreamCounts sum = counts_;
    sum.read += experts.read;
    sum.waits += experts.waits;
    sum.waited_us += experts.waited_us;
    sum.slots += experts.held;
    return sum;
}

// Where the run that waits cannot get its unit otherwise, `unit` may be on its way, but not being read.
void Streamer::vacate(StreamUnit& unit) {
    Slot& slot = slots_[static_cast<size_t>(unit.slot_)];
    if (!unit.used_) {
        for (size_t i = 0; i < unit.chunks_read_; ++i) counts_.wasted += chunk_of(unit, i).length;
    }
    std::erase(loading_, &unit);
    slot.unit = nullptr;
    if (slot.spare) {
        slot.pages.drop(0, slot.pages.size());
        counts_.slots -= slot.pages.size();
    }
    unit.state_ = StreamUnit::State::absent;
    unit.slot_ = -1;
}

void Streamer::take_slot(StreamUnit& unit, int slot) {
    slots_[static_cast<size_t>(slot)].unit = &unit;
    unit.slot_ = slot;
    unit.turn_ = ++turns_;
    unit.state_ = StreamUnit::State::loading;
    unit.used_ = false;
    unit.chunks_taken_ = unit.chunks_read_ = 0;
    unit.error_.clear();
    loading_.push_back(&unit);
}

int Streamer::free_slot() const {
    for (size_t i = 0; i < slots_.size(); ++i) {
        if (slots_[i].unit == nullptr && !slots_[i].spare) return static_cast<int>(i);
    }
    return -1;
}

// How many other units are expected to be used before this one.
size_t Streamer::distance(const StreamUnit& unit) const {
    const auto place = std::find(order_.begin(), order_.end(), &unit);
    const auto at = static_cast<size_t>(place - order_.begin());
    return (at + order_.size() - next_) % order_.size();
}

// The chunk to be read as the `number`th: what a slot may share with another comes last.
const StreamUnit::Chunk& Streamer::chunk_of(const StreamUnit& unit, size_t number) const {
    const bool from_end = slots_[static_cast<size_t>(unit.slot_)].from_end;
    return unit.chunks_[from_end ? unit.chunks_.size() - 1 - number : number];
}

// Of a unit whose slot is not a spare one.
uint64_t Streamer::arena_place(const StreamUnit& unit) const {
    const Slot& slot = slots_[static_cast<size_t>(unit.slot_)];
    return slot.from_end ? slot.at + slot_bytes_ - unit.bytes_ : slot.at;
}

char* Streamer::place_of(const StreamUnit& unit) {
    const Slot& slot = slots_[static_cast<size_t>(unit.slot_)];
    return slot.spare ? slot.pages.data() : arena_.data() + arena_place(unit);
}

// The unit that lies where the chunk would go; null where there is none. The older one of two stays.
StreamUnit* Streamer::in_the_way(const StreamUnit& unit, size_t number) const {
    if (slots_[static_cast<size_t>(unit.slot_)].spare || !unit.error_.empty()) return nullptr;
    const StreamUnit::Chunk& chunk = chunk_of(unit, number);
    const uint64_t from = arena_place(unit) + unit.pieces_[chunk.piece].place + chunk.from;
    for (const Slot& slot : slots_) {
        if (slot.unit == nullptr || slot.unit == &unit || slot.spare || slot.unit->turn_ > unit.turn_)
            continue;
        const uint64_t other = arena_place(*slot.unit);
        if (from < other + slot.unit->bytes_ && other < from + chunk.length) return slot.unit;
    }
    return nullptr;
}

// Whether reading it has begun, and goes on only once another unit has gone.
bool Streamer::stands_still(const StreamUnit& unit) const {
    return unit.state_ == StreamUnit::State::loading && unit.chunks_taken_ == unit.chunks_read_ &&
           unit.chunks_taken_ < unit.chunks_.size() && in_the_way(unit, unit.chunks_taken_) != nullptr;
}

void Streamer::wait_until_nothing_loads(Lock& lock) {
    news_.wait(lock, [&] {
        for (const Slot& slot : slots_) {
            if (slot.unit != nullptr && stands_still(*slot.unit)) vacate(*slot.unit);
        }
        return loading_.empty();
    });
}

// For a unit that a run waits for: a free slot, else that of the unit needed last, else one beyond the
// budget.
int Streamer::slot_for_wanted() {
    if (const int slot = free_slot(); slot >= 0) return slot;
    StreamUnit* last = nullptr;
    for (const Slot& slot : slots_) {
        StreamUnit* unit = slot.unit;
        if (slot.spare || unit->holders_ > 0 || wanted_.count(unit) > 0) continue;
        if (unit->state_ != StreamUnit::State::ready && !stands_still(*unit)) continue;
        if (last == nullptr || distance(*unit) > distance(*last)) last = unit;
    }
    if (last != nullptr) {
        const int slot = last->slot_;
        vacate(*last);
        return slot;
    }
    if (!loading_.empty()) return -1;  // one of these will be ready soon, and can make room
    return spare_slot();
}

int Streamer::spare_slot() {
    for (size_t i = 0; i < slots_.size(); ++i) {
        if (!slots_[i].spare || slots_[i].unit != nullptr) continue;
        counts_.slots += slots_[i].pages.size();
        return static_cast<int>(i);
    }
    slots_.push_back({0, false, true, Pages(slot_bytes_), nullptr});
    counts_.slots += slot_bytes_;
    return static_cast<int>(slots_.size() - 1);
}

// What a run waits for gets a slot that it need not share. Throws WindowFailure where there is no memory for
// one more.
void Streamer::clear_the_way(StreamUnit& unit) {
    if (unit.state_ == StreamUnit::State::absent && unit.error_.empty()) {
        const int slot = slot_for_wanted();
        if (slot < 0) return;
        take_slot(unit, slot);
    }
    if (!stands_still(unit)) return;
    StreamUnit* const other = in_the_way(unit, unit.chunks_taken_);
    if (other->state_ != StreamUnit::State::ready) return;
    if (other->holders_ == 0 && wanted_.count(other) == 0) {
        vacate(*other);
    } else if (other->holders_ > 0) {  // perhaps by the same run
        const int slot = spare_slot();
        vacate(unit);
        take_slot(unit, slot);
    }
}

StreamUnit* Streamer::next_to_read() {
    const auto readable = [&]() -> StreamUnit* {
        for (StreamUnit* unit : loading_) {
            const size_t next = unit->chunks_taken_;
            if (next < unit->chunks_.size() && in_the_way(*unit, next) == nullptr) return unit;
        }
        return nullptr;
    };
    if (StreamUnit* unit = readable(); unit != nullptr) return unit;
    if (changing_ > 0) return nullptr;
    for (StreamUnit* unit : wanted_) {
        try {
            clear_the_way(*unit);
        } catch (const WindowFailure& failure) {
            unit->error_ = failure.what();
            news_.notify_all();
        }
        if (StreamUnit* found = readable(); found != nullptr) return found;
    }
    const int slot = free_slot();
    for (size_t i = 0; slot >= 0 && i < order_.size(); ++i) {
        StreamUnit* unit = order_[(next_ + i) % order_.size()];
        if (unit->state_ != StreamUnit::State::absent || !unit->error_.empty()) continue;
        take_slot(*unit, slot);
        return in_the_way(*unit, 0) == nullptr ? unit : nullptr;
    }
    return nullptr;
}

void Streamer::read_on() {
    name_thread("edged-reader");
    Lock lock(lock_);
    while (!closed_) {
        StreamUnit* unit = next_to_read();
        if (unit == nullptr) {
            work_.wait(lock);
            continue;
        }
        read_some(*unit, lock);
    }
}

// From the next chunk on, as far as one read may go.
void Streamer::read_some(StreamUnit& unit, Lock& lock) {
    const size_t first = unit.chunks_taken_++;
    StreamUnit::Chunk range = chunk_of(unit, first);
    size_t count = 1;
    for (; first + count < unit.chunks_.size(); ++count, ++unit.chunks_taken_) {
        const StreamUnit::Chunk& more = chunk_of(unit, first + count);
        const bool too_long = range.length + more.length > kMostRead;
        if (too_long || !unit.in_one_read(range, more) || in_the_way(unit, first + count) != nullptr) break;
        if (more.piece < range.piece || (more.piece == range.piece && more.from < range.from)) {
            range.piece = more.piece;
            range.from = more.from;
        }
        range.length += more.length;
    }
    const StreamUnit::Piece piece = unit.pieces_[range.piece];
    char* const slot = place_of(unit);
    const bool skip = !unit.error_.empty();
    lock.unlock();
    std::string error;
    try {
        if (!skip) piece.image->read(piece.part, range.from, slot + piece.place + range.from, range.length);
    } catch (const WindowFailure& failure) {
        error = failure.what();
    }
    lock.lock();
    if (error.empty() && !skip) counts_.read += range.length;
    if (unit.error_.empty()) unit.error_ = error;
    unit.chunks_read_ += count;
    if (unit.chunks_read_ < unit.chunks_.size()) {
        if (changing_ > 0) news_.notify_all();
        return;
    }
    if (unit.error_.empty() && unit.reads_ % kCheckEvery == 0) {
        lock.unlock();
        try {
            for (const auto& part : unit.pieces_) part.image->check(part.part, slot + part.place);
        } catch (const WindowFailure& failure) {
            error = failure.what();
        }
        lock.lock();
        unit.error_ = error;
    }
    unit.reads_ = unit.error_.empty() ? unit.reads_ + 1 : 0;
    std::erase(loading_, &unit);
    unit.state_ = StreamUnit::State::ready;
    if (!unit.error_.empty()) {
        unit.used_ = true;  // nothing was read that could be wasted
        vacate(unit);
    }
    news_.notify_all();
    work_.notify_all();
}

}  // namespace edged
