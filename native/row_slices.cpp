#include "row_slices.hpp"

#include <ggml.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "error.hpp"
#include "pages.hpp"

namespace edged {

namespace {

constexpr int64_t kRowsTogether = 64;  // a multiple of the rows that any kernel interleaves
constexpr int64_t kRowsAtOnce = 4;     // a matrix whose rows these do not divide has other kernels
constexpr int64_t kMostSlices = 400;   // an image has room for no more

// A tensor takes a place in a buffer of its layout, and so learns which kernels it is for.
bool introduce(ggml_tensor* tensor, ggml_backend_buffer_t buffer, uint64_t at = 0) {
    return ggml_backend_buffer_get_alloc_size(buffer, tensor) + at <= ggml_backend_buffer_get_size(buffer) &&
           ggml_backend_tensor_alloc(buffer, tensor,
                                     static_cast<char*>(ggml_backend_buffer_get_base(buffer)) + at) ==
               GGML_STATUS_SUCCESS;
}

ggml_context_ptr room_for(size_t n_tensors) {
    ggml_context_ptr context(ggml_init({n_tensors * ggml_tensor_overhead(), nullptr, true}));
    if (!context) throw WindowFailure("not enough memory");
    return context;
}

// Accelerators compute products of many tokens, and would compute one with a slice in another way.
bool only_the_processor() {
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        if (ggml_backend_dev_type(ggml_backend_dev_get(i)) == GGML_BACKEND_DEVICE_TYPE_ACCEL) return false;
    }
    return true;
}

// As few slices as there can be of at most `most` rows, all but the last one alike, of a multiple of `step`.
std::vector<int64_t> even_counts(int64_t n_rows, int64_t most, int64_t step) {
    const int64_t n = (n_rows + most - 1) / most;
    const int64_t rows = ((n_rows + n - 1) / n + step - 1) / step * step;
    std::vector<int64_t> counts;
    for (int64_t at = 0; at < n_rows; at += rows) counts.push_back(std::min(rows, n_rows - at));
    return counts;
}

// Slices of about `wanted` rows, all of which leave the whole's remainder by kRowsAtOnce.
std::vector<int64_t> odd_counts(int64_t n_rows, int64_t wanted) {
    std::vector<int64_t> counts;
    const int64_t odd = n_rows % kRowsAtOnce;
    const int64_t least = (n_rows + wanted - 1) / wanted;
    const int64_t n = (least + kRowsAtOnce - 2) / kRowsAtOnce * kRowsAtOnce + 1;  // so the remainders add up
    const int64_t blocks = (n_rows - n * odd) / kRowsAtOnce;
    for (int64_t i = 0; i < n; ++i) {
        counts.push_back((blocks * (i + 1) / n - blocks * i / n) * kRowsAtOnce + odd);
    }
    return counts;
}

std::unique_ptr<RowSlices> slices_of(const Weight& whole, const std::vector<int64_t>& counts,
                                     ggml_backend_buffer_t place, const void* kernels) {
    auto rows = std::make_unique<RowSlices>();
    rows->matrix = whole.tensor;
    rows->context = room_for(counts.size());
    const uint64_t row_bytes = whole.tensor->nb[1];
    int64_t first = 0;
    for (const int64_t count : counts) {
        ggml_tensor* slice =
            ggml_new_tensor_2d(rows->context.get(), whole.tensor->type, whole.tensor->ne[0], count);
        if (!introduce(slice, place) || slice->extra != kernels) return nullptr;
        rows->slices.push_back({slice, whole.name + ".rows." + std::to_string(first), whole.layer,
                                whole.file_offset + static_cast<uint64_t>(first) * row_bytes,
                                ggml_nbytes(slice), ggml_backend_buft_get_alloc_size(whole.layout, slice),
                                whole.layout});
        rows->first_rows.push_back(first);
        first += count;
    }
    return rows;
}

}  // namespace

std::unique_ptr<RowSlices> RowCutter::cut(const Weight& whole, ggml_backend_buffer_t place,
                                          uint64_t slice_bytes) {
    const int64_t n_rows = whole.tensor->ne[1];
    const auto row_bytes = static_cast<int64_t>(whole.tensor->nb[1]);
    if (ggml_n_dims(whole.tensor) != 2 || n_rows % kRowsAtOnce != 0 || whole.memory_bytes <= slice_bytes ||
        whole.memory_bytes != whole.file_bytes || !only_the_processor()) {
        return nullptr;
    }
    const auto page = static_cast<int64_t>(kPage);
    const int64_t step = std::lcm(kRowsTogether, page / std::gcd(page, row_bytes));
    const int64_t fit = static_cast<int64_t>(slice_bytes) / row_bytes / step;
    const int64_t most =
        std::max({fit, (n_rows + kMostSlices * step - 1) / (kMostSlices * step), int64_t{1}}) * step;
    std::unique_ptr<RowSlices> rows =
        slices_of(whole, even_counts(n_rows, most, step), place, whole.tensor->extra);
    if (!rows || rows->slices.size() < 2 || !lies_by_rows(whole)) return nullptr;
    for (const Weight& slice : rows->slices) {
        if (slice.memory_bytes != slice.file_bytes) return nullptr;
    }
    rows->in_place = true;
    return rows;
}

std::unique_ptr<RowSlices> RowCutter::cut_apart(const Weight& whole, ggml_backend_buffer_t place,
                                                const void* kernels, uint64_t slice_bytes) {
    const int64_t n_rows = whole.tensor->ne[1];
    const auto fit = static_cast<int64_t>(slice_bytes / whole.tensor->nb[1]);
    const int64_t least = (n_rows + kMostSlices - 1) / kMostSlices;
    const int64_t rows =
        std::max({fit / kRowsTogether, (least + kRowsTogether - 1) / kRowsTogether, int64_t{1}}) *
        kRowsTogether;
    const bool odd = n_rows % kRowsAtOnce != 0;
    return slices_of(whole, odd ? odd_counts(n_rows, rows) : even_counts(n_rows, rows, kRowsTogether), place,
                     kernels);
}

// Tried with a few rows, since kernels are free to lay a matrix out as they like.
bool RowCutter::lies_by_rows(const Weight& whole) {
    if (ggml_backend_buft_is_host(whole.layout)) return true;
    const auto [entry, is_new] =
        known_.try_emplace({whole.layout, whole.tensor->type, whole.tensor->ne[0]}, false);
    if (!is_new) return entry->second;
    const ggml_context_ptr context = room_for(3);
    const auto rows = [&](int64_t n) {
        return ggml_new_tensor_2d(context.get(), whole.tensor->type, whole.tensor->ne[0], n);
    };
    ggml_tensor* both = rows(2 * kRowsTogether);
    ggml_tensor* halves[] = {rows(kRowsTogether), rows(kRowsTogether)};
    const uint64_t half = ggml_nbytes(halves[0]);
    const auto buffer = [&] {
        return ggml_backend_buffer_ptr(ggml_backend_buft_alloc_buffer(
            whole.layout, ggml_backend_buft_get_alloc_size(whole.layout, both) + kPage));
    };
    const ggml_backend_buffer_ptr one = buffer();
    const ggml_backend_buffer_ptr other = buffer();
    if (!one || !other) throw WindowFailure("not enough memory");
    std::vector<char> content(2 * half);
    uint32_t number = 1;
    for (char& byte : content) byte = static_cast<char>((number = number * 1664525 + 1013904223) >> 24);
    if (!introduce(both, one.get()) || both->extra != whole.tensor->extra) return false;
    ggml_backend_tensor_set(both, content.data(), 0, 2 * half);
    for (size_t i = 0; i < 2; ++i) {
        if (!introduce(halves[i], other.get(), i * half)) return false;
        ggml_backend_tensor_set(halves[i], content.data() + i * half, 0, half);
    }
    return entry->second = std::memcmp(both->data, halves[0]->data, 2 * half) == 0;
}

}  // namespace edged
