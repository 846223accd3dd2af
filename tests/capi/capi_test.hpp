#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "flute/flute.h"

struct Destroy {
  void operator()(flute_packed* packed) const { flute_packed_destroy(packed); }
  void operator()(flute_matrix* matrix) const { flute_matrix_destroy(matrix); }
  void operator()(flute_checkpoint* checkpoint) const { flute_checkpoint_destroy(checkpoint); }
};
template <typename Handle>
using Owned = std::unique_ptr<Handle, Destroy>;

// The last error's text; asserting on parts of it says which argument must be named.
inline std::string message() { return flute_last_error_message(); }
#define EXPECT_ERROR(call, expected_status, part)                                              \
  do {                                                                                         \
    EXPECT_EQ(call, expected_status) << message();                                             \
    EXPECT_NE(message().find(part), std::string::npos) << "message was: " << message();        \
    EXPECT_EQ(message().find('\n'), std::string::npos) << "more than one line: " << message(); \
  } while (false)
