// How a batch is cut into runs that libllama computes in one go, with its rows in the order given.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace edged {

// Rows of the batch, in the order in which libllama is to get them.
using Run = std::vector<int32_t>;

// With one KV stream per sequence, libllama keeps a batch together only if its sequences are neighbours
// (s, s+1, ...) and bring equally many tokens each; anything else it cuts and reorders by rules of its own.
// So rows are grouped by sequence here, and neighbours of equal length share a run. A sequence that brings
// a single token at `share_below` or later has a run of its own; with kNeverShare each has one.
constexpr int32_t kNeverShare = -1;
std::vector<Run> split_into_runs(std::span<const int32_t> seq_ids, std::span<const int32_t> positions,
                                 int32_t share_below);

}  // namespace edged
