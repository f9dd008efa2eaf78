// What the native module throws; Python sees edged.errors.WindowError.
#pragma once

#include <stdexcept>
#include <string>

namespace edged {

class WindowFailure : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace edged
