// Matrices in slices of rows, so that one that is streamed need not be in memory as a whole: it is computed
// with slice by slice.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpp.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "placement.hpp"

namespace edged {

struct RowSlices {
    ggml_tensor* matrix = nullptr;
    bool in_place = false;       // end to end they are the matrix as its kernels want it
    std::vector<Weight> slices;  // from the first row to the last one
    std::vector<int64_t> first_rows;
    ggml_context_ptr context;  // of the slices' tensors
};

class RowCutter {
  public:
    // `place`: a buffer with the matrix' layout and room for a slice. Null unless the slices have the kernels
    // of the whole, and lie end to end as it does; or if there would be one slice only.
    std::unique_ptr<RowSlices> cut(const Weight& whole, ggml_backend_buffer_t place, uint64_t slice_bytes);
    // The same, but the slices need not lie as the whole does. Null unless they have `kernels`.
    static std::unique_ptr<RowSlices> cut_apart(const Weight& whole, ggml_backend_buffer_t place,
                                                const void* kernels, uint64_t slice_bytes);

  private:
    bool lies_by_rows(const Weight& whole);

    std::map<std::tuple<ggml_backend_buffer_type_t, ggml_type, int64_t>, bool> known_;
};

}  // namespace edged
