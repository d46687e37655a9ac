// A test registry and CHECK for the C++ tests. Each test_*.cc includes it once and becomes an executable of its own.
//
//   TEST(the_sentence_that_holds) { CHECK(1 + 1 == 2); }
//
// A failing CHECK prints itself and ends its test. The executable's status is 1 when any test failed. With arguments,
// only tests whose names contain one of them run.
#pragma once

#include <cstdio>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

[[noreturn]] inline void fail(const std::string& what, const char* file, int line) {
  throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <typename Left, typename Right>
void equal(const Left& left, const Right& right, const char* text, const char* file, int line) {
  if (left == right) {
    return;
  }
  std::ostringstream message;
  message.precision(9);
  message << text << ": " << left << " is not " << right;
  fail(message.str(), file, line);
}

}  // namespace check

#define CHECK(condition) ((condition) ? static_cast<void>(0) : ::check::fail(#condition, __FILE__, __LINE__))
#define CHECK_EQUAL(left, right) ::check::equal((left), (right), #left " == " #right, __FILE__, __LINE__)
#define CHECK_THROWS(expression, Type)                                                    \
  do {                                                                                    \
    bool thrown = false;                                                                  \
    try {                                                                                 \
      static_cast<void>(expression);                                                      \
    } catch (const Type&) {                                                               \
      thrown = true;                                                                      \
    }                                                                                     \
    if (!thrown) ::check::fail("expected " #Type " of " #expression, __FILE__, __LINE__); \
  } while (false)
#define TEST(name)                                             \
  static void name();                                          \
  static const ::check::Register register_##name(#name, name); \
  static void name()

int main(int argc, char** argv) {
  int failures = 0;
  for (const ::check::Test& test : ::check::tests()) {
    bool chosen = argc == 1;
    for (int i = 1; i < argc; ++i) {
      chosen = chosen || std::string(test.name).find(argv[i]) != std::string::npos;
    }
    if (!chosen) {
      continue;
    }
    try {
      test.run();
      std::printf("ok    %s\n", test.name);
    } catch (const std::exception& error) {
      std::printf("FAIL  %s\n      %s\n", test.name, error.what());
      ++failures;
    }
    std::fflush(stdout);
  }
  return failures == 0 ? 0 : 1;
}
