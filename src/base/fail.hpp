#pragma once
#include <fmt/format.h>

#include <utility>

#include "flute/error.hpp"

namespace flute {

/// throw Error(code, fmt::format(...)).
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace flute
