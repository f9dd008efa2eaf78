// What ggml can compute on, on this machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edged {

struct DeviceInfo {
    std::string name;
    std::string description;
    std::string kind;  // "cpu", "gpu", "igpu", "accel", or "other"
    uint64_t memory_free = 0;
    uint64_t memory_total = 0;
};

std::vector<DeviceInfo> devices();

// One line: the instruction sets and libraries that ggml was built for and uses.
std::string system_info();

}  // namespace edged
