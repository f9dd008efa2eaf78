// Where libllama may put weights that it shall not hold: addresses without memory behind them.
#pragma once

#include <ggml-backend.h>

namespace edged {

// A buffer of this type takes any tensor and forgets what is written to it. libllama hands such a tensor's
// bytes over from one temporary copy, instead of reading them into the buffer.
ggml_backend_buffer_type_t unheld_buffer_type();

// The same for tensors so large that even a temporary copy is too much: libllama reads their bytes into the
// buffer, where they lie on top of one another.
ggml_backend_buffer_type_t unheld_large_buffer_type();

}  // namespace edged
