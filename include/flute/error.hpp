#pragma once
#include <stdexcept>
#include <string>

namespace flute {

/// What kind of thing went wrong. The values are those of the C ABI's `flute_status`.
enum class ErrorCode {
  kInvalidArgument = 1,  ///< the caller passed something wrong
  kInvalidFormat = 2,    ///< a file or buffer does not hold what it should
  kIo = 3,               ///< the operating system refused a file operation
  kUnsupported = 4,      ///< well-formed, but this build or backend cannot do it
  kInternal = 5,         ///< a defect of this library
  kOutOfMemory = 6,      ///< a device has too little memory left (the host: std::bad_alloc)
  kDevice = 7,           ///< a device or its driver refused an operation
};

/// The one exception type of the library. The message is one line that names what was wrong, what was expected and
/// what was found, e.g. `model.safetensors: tensor 'a.weight': expected dtype BF16, found I64`.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace flute
