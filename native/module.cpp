// The Python face of the native part. Long calls release the interpreter lock.
#include <llama.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "devices.hpp"
#include "error.hpp"
#include "ggml_types.hpp"
#include "llama_log.hpp"
#include "measure.hpp"
#include "streamer.hpp"
#include "system.hpp"
#include "window.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using edged::WindowFailure;
using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using Matrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using SegmentTuple = std::tuple<uint64_t, uint64_t, std::optional<std::string>, uint64_t>;
using ResidencyTuple = std::tuple<std::shared_ptr<edged::Streamer>, std::string, std::vector<std::string>,
                                  std::vector<int64_t>, uint64_t, std::string>;
using EmbeddingTuple = std::tuple<std::string, uint64_t, int, int64_t, int64_t>;
using TapTuple = std::tuple<std::string, std::string, std::string, int64_t, int64_t>;
using FactorTuple = std::tuple<std::string, float, float>;

template <typename T>
std::span<const T> view(const Array& array, const char* name, const char* expected, size_t n_dims) {
    bool fits = array.dtype() == nb::dtype<T>() && array.ndim() == n_dims;
    int64_t stride = 1;
    for (size_t axis = array.ndim(); fits && axis-- > 0;) {
        fits = array.shape(axis) <= 1 || array.stride(axis) == stride;
        stride *= static_cast<int64_t>(array.shape(axis));
    }
    if (!fits) throw WindowFailure(std::string(name) + " must be a contiguous array of " + expected);
    return {static_cast<const T*>(array.data()), array.size()};
}

edged::BatchView batch_view(const Array& seq_ids, const Array& positions, const Array& outputs) {
    return {view<int32_t>(seq_ids, "seq_ids", "int32, one per token", 1),
            view<int32_t>(positions, "positions", "int32, one per token", 1),
            view<bool>(outputs, "outputs", "bool, one per token", 1)};
}

Matrix to_numpy(edged::Rows rows) {
    float* data = rows.data.release();
    const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return Matrix(data, {static_cast<size_t>(rows.n_rows), static_cast<size_t>(rows.width)}, owner);
}

using RunMethod = edged::Rows (edged::Window::*)(const edged::BatchView&, std::span<const int32_t>,
                                                 std::span<const float>);

template <RunMethod method>
Matrix run(edged::Window& window, const Array& seq_ids, const Array& positions, const Array& outputs,
           const Array& inputs) {
    const edged::BatchView batch = batch_view(seq_ids, positions, outputs);
    std::span<const int32_t> tokens;
    std::span<const float> hidden;
    if (window.takes_tokens()) {
        tokens = view<int32_t>(inputs, "inputs", "int32, one token id per row", 1);
    } else {
        hidden = view<float>(inputs, "inputs", "float32, one hidden state per row", 2);
        if (inputs.shape(0) != batch.size()) throw WindowFailure("a batch needs one hidden state per row");
    }
    edged::Rows rows;
    {
        const nb::gil_scoped_release unlocked;
        rows = (window.*method)(batch, tokens, hidden);
    }
    return to_numpy(std::move(rows));
}

std::optional<edged::EmbeddingTable> table(const std::optional<EmbeddingTuple>& tuple) {
    if (!tuple) return std::nullopt;
    const auto& [path, file_offset, type, columns, rows] = *tuple;
    return edged::EmbeddingTable{path, file_offset, type, columns, rows};
}

std::vector<edged::Tap> taps(const std::vector<TapTuple>& tuples) {
    std::vector<edged::Tap> list;
    for (const auto& [name, source, into, offset, width] : tuples) {
        list.push_back({name, source, into, offset, width});
    }
    return list;
}

void load(edged::Window* window, int first, int last, int64_t n_embd, int64_t n_vocab, int64_t width,
          const nb::bytes& header, const std::vector<SegmentTuple>& segments,
          const std::optional<EmbeddingTuple>& embedding,
          const std::optional<EmbeddingTuple>& layer_embedding, bool reads_tokens, bool carries_tokens,
          const std::vector<TapTuple>& entries, const std::vector<TapTuple>& captures,
          const std::vector<FactorTuple>& factors, int64_t n_ctx, int64_t n_seq_max, int64_t n_ubatch,
          int64_t n_threads, const std::string& kv_type, const std::string& flash_attention,
          int64_t n_gpu_layers, const std::optional<ResidencyTuple>& residency, const nb::object& progress,
          bool rehearsal) {
    edged::WindowSource source;
    source.first = first;
    source.last = last;
    source.n_embd = n_embd;
    source.n_vocab = n_vocab;
    source.width = width;
    source.header = std::string(header.c_str(), header.size());
    source.reads_tokens = reads_tokens;
    source.carries_tokens = carries_tokens;
    source.entries = taps(entries);
    source.captures = taps(captures);
    for (const auto& [name, wrong, right] : factors) source.factors.push_back({name, wrong, right});
    for (const auto& [offset, length, path, file_offset] : segments) {
        source.segments.push_back({offset, length, path.value_or(""), file_offset});
    }
    source.embedding = table(embedding);
    source.layer_embedding = table(layer_embedding);
    edged::WindowOptions options{n_ctx,   n_seq_max,       n_ubatch,     n_threads, n_threads,
                                 kv_type, flash_attention, n_gpu_layers, rehearsal, std::nullopt};
    if (residency) {
        const auto& [streamer, images, keys, streamed, spare, output] = *residency;
        options.residency = edged::ResidencyOptions{streamer, images, keys, streamed, spare, output};
    }

    // An exception in the callback ends the load and is raised once llama.cpp has cleaned up.
    std::optional<nb::python_error> raised;
    edged::Progress report;
    if (!progress.is_none()) {
        report = [&](float done) {
            const nb::gil_scoped_acquire locked;
            try {
                progress(done);
                return true;
            } catch (nb::python_error& error) {
                raised.emplace(std::move(error));
                return false;
            }
        };
    }
    try {
        const nb::gil_scoped_release unlocked;
        new (window) edged::Window(std::move(source), options, report);
    } catch (const WindowFailure&) {
        if (raised) throw std::move(*raised);
        throw;
    }
}

// What libllama says may quote a file, and cut it off in the middle of a character.
nb::object text(const std::string& said) {
    return nb::steal(PyUnicode_DecodeUTF8(said.data(), static_cast<Py_ssize_t>(said.size()), "replace"));
}

// Raised as edged.errors.WindowError, so that one tree of exceptions serves both languages.
void translate(const std::exception_ptr& thrown, void* /*unused*/) {
    try {
        std::rethrow_exception(thrown);
    } catch (const WindowFailure& failure) {
        const nb::object type = nb::module_::import_("edged.errors").attr("WindowError");
        PyErr_SetObject(type.ptr(), text(failure.what()).ptr());
    }
}

}  // namespace

NB_MODULE(_native, m) {
    nb::register_exception_translator(translate);
    edged::give_freed_memory_back();
    const nb::call_guard<nb::gil_scoped_release> unlocked;

    m.attr("SLICE_BYTES") = edged::kSliceBytes;
    nb::class_<edged::Streamer>(m, "Streamer")
        .def(nb::init<uint64_t, uint64_t>(), "read_ahead"_a, "slice_bytes"_a = edged::kSliceBytes)
        .def_prop_ro("counts",
                     [](const edged::Streamer& streamer) {
                         const edged::StreamCounts counts = streamer.counts();
                         return std::make_tuple(counts.read, counts.wasted, counts.waits, counts.waited_us,
                                                counts.slots);
                     })
        .def("set_read_ahead", &edged::Streamer::set_read_ahead, "bytes"_a, unlocked)
        .def("close", &edged::Streamer::close, unlocked);

    nb::class_<edged::Window>(m, "Window")
        .def("__init__", load, "first"_a, "last"_a, "n_embd"_a, "n_vocab"_a, "width"_a, "header"_a,
             "segments"_a, "embedding"_a.none(), "layer_embedding"_a.none(), "reads_tokens"_a,
             "carries_tokens"_a, "entries"_a, "captures"_a, "factors"_a, nb::kw_only(), "n_ctx"_a,
             "n_seq_max"_a, "n_ubatch"_a, "n_threads"_a, "kv_type"_a, "flash_attention"_a, "n_gpu_layers"_a,
             "residency"_a.none(), "progress"_a.none(), "rehearsal"_a = false)
        .def_prop_ro("first", &edged::Window::first)
        .def_prop_ro("last", &edged::Window::last)
        .def_prop_ro("width", &edged::Window::width)
        .def_prop_ro("memory",
                     [](const edged::Window& window) {
                         const edged::BufferBytes bytes = window.memory();
                         return std::make_tuple(bytes.weights, bytes.state, bytes.compute);
                     })
        .def_prop_ro("residency",
                     [](const edged::Window& window) {
                         const edged::ResidencyBytes bytes = window.residency();
                         return std::make_tuple(bytes.resident, bytes.locked, bytes.streamed);
                     })
        .def_prop_ro("streamed", &edged::Window::streamed)
        .def("stream", &edged::Window::stream, "layers"_a, "spare"_a, unlocked)
        .def("run", run<&edged::Window::run>, "seq_ids"_a.noconvert(), "positions"_a.noconvert(),
             "outputs"_a.noconvert(), "inputs"_a.noconvert())
        .def("run_last", run<&edged::Window::run_last>, "seq_ids"_a.noconvert(), "positions"_a.noconvert(),
             "outputs"_a.noconvert(), "inputs"_a.noconvert())
        .def("remove", &edged::Window::remove, "seq"_a, "p0"_a, "p1"_a, unlocked)
        .def("copy", &edged::Window::copy, "seq"_a, "target"_a, unlocked)
        .def("keep", &edged::Window::keep, "seq"_a, unlocked)
        .def("clear", &edged::Window::clear, unlocked)
        .def("cancel", &edged::Window::cancel, unlocked)
        .def("close", &edged::Window::close, unlocked);

    m.def("take_over_log", edged::take_over_log,
          "Makes llama.cpp log into the queue that drain_log empties.");
    m.def(
        "drain_log",
        [] {
            nb::list lines;
            for (const auto& [level, line] : edged::drain_log())
                lines.append(nb::make_tuple(level, text(line)));
            return lines;
        },
        "llama.cpp's log lines since the last call: (level, text).");
    m.def("llama_version", [] { return std::string(llama_version()); });
    m.def("system_info", edged::system_info, "One line: what ggml was built for.");
    m.def(
        "tensor_types",
        [] {
            std::vector<std::tuple<int, std::string, int64_t, uint64_t>> table;
            for (const edged::TypeLayout& type : edged::all_types()) {
                table.emplace_back(type.id, type.name, type.block_size, type.block_bytes);
            }
            return table;
        },
        "Every tensor type that ggml knows: (id, name, values per block, bytes per block).");
    m.def(
        "devices",
        [] {
            std::vector<std::tuple<std::string, std::string, std::string, uint64_t, uint64_t>> list;
            for (const edged::DeviceInfo& device : edged::devices()) {
                list.emplace_back(device.name, device.description, device.kind, device.memory_free,
                                  device.memory_total);
            }
            return list;
        },
        "What ggml can compute on: (name, description, kind, free bytes, total bytes).");
    nb::class_<edged::Meter>(m, "Meter")
        .def(nb::init<const std::string&, int64_t>(), "device"_a, "n_threads"_a, unlocked)
        .def(
            "products",
            [](edged::Meter& meter, int type, bool repack, int64_t batch, int64_t milliseconds,
               int64_t memory) -> std::optional<std::pair<double, double>> {
                const auto speed = meter.products({type, repack, batch, milliseconds, memory});
                if (!speed) return std::nullopt;
                return std::make_pair(speed->bandwidth, speed->flops);
            },
            "type"_a, "repack"_a, "batch"_a, "milliseconds"_a, "memory"_a, unlocked,
            "(bytes of weights per second of a matrix-vector product, flops of a matrix-matrix product), or "
            "None where the device cannot multiply such weights.")
        .def("attention", &edged::Meter::attention, "n_tokens"_a, "depth"_a, "milliseconds"_a, unlocked,
             "flops of attention to a cache of `depth` positions, or None where the device cannot do that.");
    m.def("read_bandwidth", edged::read_bandwidth, "n_threads"_a, "milliseconds"_a, "memory"_a, unlocked,
          "Bytes per second that the CPU's threads read from memory together.");
}
