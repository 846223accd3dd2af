#pragma once
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "flute/error.hpp"

namespace flute {

/// What the Error says that `action` throws; a test failure where it throws none.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an error, found none";
  return "no error";
}

/// The same, and the error must carry `code`.
inline std::string error_of(ErrorCode code, const std::function<void()>& action) {
  return error_of([&] {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      throw;
    }
  });
}

}  // namespace flute
