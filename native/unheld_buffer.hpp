// Where libllama may put weights that it shall not hold: addresses without memory behind them.
#pragma once

#include <ggml-backend.h>

namespace edged {

// A buffer of this type takes any tensor and forgets what is written to it. libllama hands such a tensor's
// bytes over from one temporary copy, instead of reading them into the buffer.
ggml_backend_buffer_type_t unheld_buffer_type();

}  // namespace edged
