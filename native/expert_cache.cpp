#include "expert_cache.hpp"

#include <algorithm>
#include <chrono>
#include <future>
#include <string>

#include "error.hpp"
#include "system.hpp"

namespace edged {

namespace {

constexpr size_t kReaders = 4;  // experts are small: several reads at a time keep the disk busy

struct Read {
    const ImageFile* image = nullptr;
    size_t part = 0;
    uint64_t from = 0;
    char* to = nullptr;
    uint64_t length = 0;
    uint64_t expert = 0;
    const char* data = nullptr;  // of the expert
    uint64_t* reads = nullptr;   // of the expert so far
};

void read_share(const std::vector<Read>& reads, size_t share) {
    for (size_t i = share; i < reads.size(); i += kReaders) {
        const Read& read = reads[i];
        read.image->read(read.part, read.from, read.to, read.length);
        if (*read.reads % kCheckEvery == 0) read.image->check(read.part, read.expert, read.data);
        ++*read.reads;
    }
}

void read_all(const std::vector<Read>& reads) {
    std::vector<std::future<void>> others;
    for (size_t share = 1; share < std::min(kReaders, reads.size()); ++share) {
        others.push_back(std::async(std::launch::async, [&reads, share] {
            name_thread("edged-expert");
            read_share(reads, share);
        }));
    }
    read_share(reads, 0);  // if this throws, the futures' destructors wait for the others
    for (std::future<void>& other : others) other.get();
}

}  // namespace

Experts::Range Experts::pages_around(int expert) const {
    const uint64_t from = slice_ * static_cast<uint64_t>(expert);
    return {from / kPage * kPage, whole_pages(from + slice_)};
}

// Pages at the edges belong to the neighbours too.
Experts::Range Experts::pages_within(int expert) const {
    const uint64_t from = whole_pages(slice_ * static_cast<uint64_t>(expert));
    const uint64_t to = slice_ * static_cast<uint64_t>(expert + 1) / kPage * kPage;
    return {from, std::max(from, to)};
}

void ExpertCache::set_room(uint64_t bytes) {
    const std::lock_guard guard(lock_);
    room_ = bytes;
}

void ExpertCache::add(Experts& set) {
    const std::lock_guard guard(lock_);
    sets_.push_back(&set);
}

void ExpertCache::remove(Experts& set) {
    const std::lock_guard guard(lock_);
    for (int expert = 0; expert < set.count(); ++expert) {
        if (set.experts_[static_cast<size_t>(expert)].here) drop(set, expert);
    }
    std::erase(sets_, &set);
}

void ExpertCache::drop(Experts& set, int expert) {
    const Experts::Range range = set.pages_within(expert);
    set.pages_.drop(set.offset_ + range.from, range.to - range.from);
    set.experts_[static_cast<size_t>(expert)].here = false;
    counts_.held -= set.slice_;
}

void ExpertCache::make_room(uint64_t bytes) {
    if (counts_.held + bytes <= room_) return;
    struct Candidate {
        uint64_t last_use;
        Experts* set;
        int expert;
    };
    std::vector<Candidate> candidates;
    for (Experts* set : sets_) {
        for (int expert = 0; expert < set->count(); ++expert) {
            const Experts::Expert& one = set->experts_[static_cast<size_t>(expert)];
            if (one.here && one.holders == 0) candidates.push_back({one.last_use, set, expert});
        }
    }
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.last_use < b.last_use; });
    for (const Candidate& candidate : candidates) {
        if (counts_.held + bytes <= room_) return;
        drop(*candidate.set, candidate.expert);
    }
}

void ExpertCache::hold(const std::vector<Experts*>& sets, const std::set<int>& wanted) {
    const std::lock_guard guard(lock_);
    for (const Experts* set : sets) {
        if (wanted.empty() || *wanted.begin() < 0 || *wanted.rbegin() >= set->count()) {
            throw WindowFailure("tokens are routed to experts that the layer does not have");
        }
    }
    ++clock_;
    std::vector<Read> reads;
    std::vector<Experts::Expert*> fresh;
    uint64_t bytes = 0;
    for (Experts* set : sets) {
        for (const int expert : wanted) {
            Experts::Expert& one = set->experts_[static_cast<size_t>(expert)];
            ++one.holders;
            one.last_use = clock_;
            if (one.here) continue;
            const Experts::Range range = set->pages_around(expert);
            char* const tensor = set->pages_.data() + set->offset_;
            const auto number = static_cast<uint64_t>(expert);
            reads.push_back({&set->image_, set->part_, range.from, tensor + range.from, range.to - range.from,
                             number, tensor + number * set->slice_, &one.reads});
            fresh.push_back(&one);
            bytes += set->slice_;
        }
    }
    if (reads.empty()) return;
    make_room(bytes);
    const auto since = std::chrono::steady_clock::now();
    try {
        read_all(reads);
    } catch (const WindowFailure&) {
        for (const Read& read : reads) *read.reads = 0;
        for (Experts* set : sets) {
            for (const int expert : wanted) --set->experts_[static_cast<size_t>(expert)].holders;
        }
        throw;
    }
    const auto waited = std::chrono::steady_clock::now() - since;
    ++counts_.waits;
    counts_.waited_us +=
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(waited).count());
    for (Experts::Expert* one : fresh) one->here = true;
    for (const Read& read : reads) counts_.read += read.length;
    counts_.held += bytes;
}

void ExpertCache::doubt() {
    const std::lock_guard guard(lock_);
    for (Experts* set : sets_) {
        for (int expert = 0; expert < set->count(); ++expert) {
            Experts::Expert& one = set->experts_[static_cast<size_t>(expert)];
            one.reads = 0;
            if (one.here && one.holders == 0) drop(*set, expert);
        }
    }
}

void ExpertCache::release(const std::vector<Experts*>& sets, const std::set<int>& wanted) {
    const std::lock_guard guard(lock_);
    for (Experts* set : sets) {
        for (const int expert : wanted) --set->experts_[static_cast<size_t>(expert)].holders;
    }
}

ExpertCounts ExpertCache::counts() const {
    const std::lock_guard guard(lock_);
    return counts_;
}

}  // namespace edged
