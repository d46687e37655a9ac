// Bounded little-endian encoding of control messages.
//
// A Reader never reads past its bytes and never allocates more than it was given, because it checks a length against
// what is left before using it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace distnet {

static_assert(std::endian::native == std::endian::little,
              "the wire is little-endian; so far every machine we run on is");

class Writer {
 public:
  template <typename T>
    requires std::is_arithmetic_v<T>
  void number(T value) {
    append(&value, sizeof value);
  }
  void text(const std::string& value) {
    number(static_cast<std::uint32_t>(value.size()));
    append(value.data(), value.size());
  }
  void bytes(std::span<const std::byte> value) {
    number(static_cast<std::uint32_t>(value.size()));
    append(value.data(), value.size());
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  // Byte by byte, because GCC 12 warns of overflows in vector::insert and vector::resize that cannot happen.
  void append(const void* from, std::size_t size) {
    const auto* const bytes = static_cast<const std::byte*>(from);
    std::copy(bytes, bytes + size, std::back_inserter(bytes_));
  }

  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
    requires std::is_arithmetic_v<T>
  T number() {
    T value{};
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const auto length = number<std::uint32_t>();
    const std::byte* const at = take(length);
    return {reinterpret_cast<const char*>(at), length};
  }
  // They stay where they are in the message.
  std::span<const std::byte> bytes() {
    const auto length = number<std::uint32_t>();
    return {take(length), length};
  }
  std::size_t left() const { return bytes_.size(); }
  void expect_end() const {
    if (!bytes_.empty()) {
      throw Error(ErrorCode::kProtocol,
                  "a message is " + std::to_string(bytes_.size()) + " bytes longer than its fields");
    }
  }

 private:
  const std::byte* take(std::size_t count) {
    if (count > bytes_.size()) {
      throw Error(ErrorCode::kProtocol, "a message ends before its fields do");
    }
    const std::byte* const at = bytes_.data();
    bytes_ = bytes_.subspan(count);
    return at;
  }

  std::span<const std::byte> bytes_;
};

}  // namespace distnet
