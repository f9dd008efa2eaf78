#include "batch_runs.hpp"

#include <map>

namespace edged {

std::vector<Run> split_into_runs(std::span<const int32_t> seq_ids, std::span<const int32_t> positions,
                                 int32_t share_below) {
    std::map<int32_t, Run> rows_of;
    for (size_t row = 0; row < seq_ids.size(); ++row) {
        rows_of[seq_ids[row]].push_back(static_cast<int32_t>(row));
    }
    std::vector<Run> runs;
    int32_t last_seq = -1;
    size_t last_length = 0;  // 0: the last run takes nobody in
    for (const auto& [seq, rows] : rows_of) {
        const bool shares = share_below != kNeverShare &&
                            (rows.size() > 1 || positions[static_cast<size_t>(rows[0])] < share_below);
        const bool joins = shares && seq == last_seq + 1 && rows.size() == last_length;
        if (!joins) runs.emplace_back();
        runs.back().insert(runs.back().end(), rows.begin(), rows.end());
        last_seq = seq;
        last_length = shares ? rows.size() : 0;
    }
    return runs;
}

}  // namespace edged
