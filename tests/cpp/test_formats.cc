// Wire formats against slow references in float64, and against hostile bytes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <span>
#include <sstream>

#include "check.h"
#include "random_floats.h"
#include "wire/format.h"

namespace {

using namespace distnet;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
constexpr std::size_t kChunk = kFormatChunkFloats;

const std::vector<FormatSpec> kFormats = {{"float32"}, {"bfloat16"}, {"float16"}};
const std::vector<std::size_t> kLengths = {1,   2,   3,    15,   16,   17,   31,   64,   100,        255,
                                           256, 257, 1000, 1024, 4095, 4096, 4097, 5000, kChunk - 1, kChunk};

// An encoded chunk between guard bytes that nobody may touch.
class ChunkBytes {
 public:
  explicit ChunkBytes(std::size_t size) : size_(size), all_(new (kAlign) std::byte[size + 2 * kGuard]) {
    std::fill(all_, all_ + size_ + 2 * kGuard, kMark);
  }
  ChunkBytes(const ChunkBytes&) = delete;
  ChunkBytes& operator=(const ChunkBytes&) = delete;
  ~ChunkBytes() { ::operator delete[](all_, kAlign); }

  std::byte* data() { return all_ + kGuard; }
  std::span<const std::byte> bytes() { return {data(), size_}; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  bool guards_are_whole() const {
    const auto whole = [](const std::byte* from) {
      return std::all_of(from, from + kGuard, [](std::byte byte) { return byte == kMark; });
    };
    return whole(all_) && whole(all_ + kGuard + size_);
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr std::align_val_t kAlign{64};
  static constexpr std::byte kMark{0xA5};
  std::size_t size_;
  std::byte* all_;
};

std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

bool same_bits(std::span<const float> left, std::span<const float> right) {
  return left.size() == right.size() && std::memcmp(left.data(), right.data(), left.size_bytes()) == 0;
}

// What is left of floats that go through a format as one chunk.
std::vector<float> through(const WireFormat& format, const std::vector<float>& floats, bool expected = true) {
  ChunkBytes bytes(format.chunk_bytes(floats.size()));
  CHECK_EQUAL(format.encode(bytes.data(), floats.data(), floats.size(), 1.0F, {}), expected);
  CHECK(format.valid(bytes.data(), floats.size()));
  if (format.for_pulls() || expected) CHECK_EQUAL(format.finite(bytes.data(), floats.size()), expected);
  std::vector<float> decoded(floats.size());
  format.decode(decoded.data(), bytes.data(), floats.size(), 0, floats.size());
  return decoded;
}

// Random bits: all exponents alike, no infinity, no NaN.
std::vector<float> random_patterns(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> floats(count);
  for (float& value : floats) {
    do value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    while (!std::isfinite(value));
  }
  return floats;
}

// ---- the 16-bit formats --------------------------------------------------------------------------------------------
// What a format of 16 bits with so many bits of mantissa is, in float64.
struct Half {
  const char* name;
  int mantissa_bits;
  int bias;
  std::vector<double> magnitudes = {};  // of patterns 0 to infinity, which stands for the next power of two

  Half(const char* format, int bits) : name(format), mantissa_bits(bits), bias((1 << (14 - bits)) - 1) {
    const int infinity = ((1 << (15 - bits)) - 1) << bits;
    for (int pattern = 0; pattern <= infinity; ++pattern) {
      const int exponent = pattern >> bits;
      const int mantissa = pattern & ((1 << bits) - 1);
      magnitudes.push_back(exponent == 0 ? std::ldexp(mantissa, 1 - bias - bits)
                                         : std::ldexp((1 << bits) + mantissa, exponent - bias - bits));
    }
  }
  std::uint16_t infinity() const { return static_cast<std::uint16_t>(magnitudes.size() - 1); }
  // The pattern nearest to a finite value; of two, the even one.
  std::uint16_t nearest(float value) const {
    const double magnitude = std::abs(static_cast<double>(value));
    const auto above = std::lower_bound(magnitudes.begin(), magnitudes.end(), magnitude);
    auto pattern = static_cast<std::size_t>(above - magnitudes.begin());
    if (above == magnitudes.end()) {
      pattern = infinity();
    } else if (pattern > 0) {
      const double to_lower = magnitude - magnitudes[pattern - 1];
      const double to_upper = *above - magnitude;
      if (to_lower < to_upper || (to_lower == to_upper && pattern % 2 == 1)) --pattern;
    }
    return static_cast<std::uint16_t>(pattern | (std::signbit(value) ? 0x8000U : 0U));
  }
  float decoded(std::uint16_t pattern) const {
    const std::uint16_t magnitude = pattern & 0x7FFFU;
    const float value = magnitude < infinity()    ? static_cast<float>(magnitudes[magnitude])
                        : magnitude == infinity() ? kInfinity
                                                  : kNotANumber;
    return (pattern & 0x8000U) != 0 ? -value : value;
  }
};

const std::vector<Half>& halves() {
  static const std::vector<Half> all = {{"bfloat16", 7}, {"float16", 10}};
  return all;
}

void check_rounding(const Half& half, const std::vector<float>& floats) {
  const auto format = make_format({half.name, {}});
  for (std::size_t begin = 0; begin < floats.size(); begin += kChunk) {
    const std::size_t count = std::min(kChunk, floats.size() - begin);
    ChunkBytes bytes(format->chunk_bytes(count));
    std::vector<float> left(count);
    std::vector<float> carried(count, -0.0F);
    bool finite = true;
    for (int with_residual = 0; with_residual < 2; ++with_residual) {
      const bool good = format->encode(bytes.data(), floats.data() + begin, count, 1.0F,
                                       with_residual == 0 ? Residual{} : Residual{carried.data(), left.data()});
      finite = true;
      for (std::size_t i = 0; i < count; ++i) {
        const float value = floats[begin + i];
        const std::uint16_t pattern = bytes.as<std::uint16_t>()[i];
        CHECK_EQUAL(pattern, half.nearest(value));
        const float decoded = half.decoded(pattern);
        finite = finite && std::isfinite(decoded);
        if (with_residual != 0 && std::isfinite(decoded)) CHECK_EQUAL(left[i], value - decoded);
      }
      CHECK_EQUAL(good, finite);
    }
    CHECK(bytes.guards_are_whole());
  }
}

}  // namespace

TEST(every_16_bit_pattern_comes_back_as_it_was) {
  for (const Half& half : halves()) {
    const auto format = make_format({half.name, {}});
    for (std::uint32_t first = 0; first < 65536; first += kChunk) {
      ChunkBytes bytes(format->chunk_bytes(kChunk));
      for (std::uint32_t i = 0; i < kChunk; ++i) bytes.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(first + i);
      std::vector<float> floats(kChunk);
      format->decode(floats.data(), bytes.data(), kChunk, 0, kChunk);
      ChunkBytes again(format->chunk_bytes(kChunk));
      static_cast<void>(format->encode(again.data(), floats.data(), kChunk, 1.0F, {}));
      for (std::uint32_t i = 0; i < kChunk; ++i) {
        const auto pattern = static_cast<std::uint16_t>(first + i);
        const float expected = half.decoded(pattern);
        if (std::isnan(expected)) {
          CHECK(std::isnan(floats[i]));
          CHECK(std::isnan(half.decoded(again.as<std::uint16_t>()[i])));
        } else {
          CHECK_EQUAL(bits_of(floats[i]), bits_of(expected));
          CHECK_EQUAL(again.as<std::uint16_t>()[i], pattern);
        }
      }
    }
  }
}

TEST(sixteen_bits_round_to_the_nearest_and_of_two_to_the_even_one) {
  for (const Half& half : halves()) {
    std::vector<float> floats = {0.0F, -0.0F, kLargest, -kLargest, kSmallest, -kSmallest};
    // Each value, each middle between two, and what lies right beside the middle.
    for (std::size_t pattern = 0; pattern + 1 < half.magnitudes.size(); ++pattern) {
      const double middle = (half.magnitudes[pattern] + half.magnitudes[pattern + 1]) / 2;
      const float value = static_cast<float>(middle);
      if (pattern % 7 == 0) floats.push_back(static_cast<float>(half.magnitudes[pattern]));
      for (const float near : {value, std::nextafter(value, 0.0F), std::nextafter(value, kLargest)}) {
        floats.push_back(pattern % 3 == 0 ? -near : near);
      }
    }
    check_rounding(half, floats);
  }
}

TEST(sixteen_bits_round_random_values_of_every_size) {
  for (const Half& half : halves()) {
    check_rounding(half, random_patterns(3 * kChunk, 1));
    auto floats = random_floats(3 * kChunk, 2);
    for (std::size_t i = 0; i < floats.size(); ++i) floats[i] = std::ldexp(floats[i], static_cast<int>(i % 48) - 28);
    check_rounding(half, floats);
  }
}

TEST(a_value_too_large_for_a_format_is_told_and_arrives_as_infinite) {
  const std::vector<float> fits = {65519.996F, -65519.996F};
  CHECK(same_bits(through(*make_format({"float16", {}}), fits), std::vector<float>{65504.0F, -65504.0F}));
  CHECK(
      same_bits(through(*make_format({"float16", {}}), {65520.0F, 1.0F}, false), std::vector<float>{kInfinity, 1.0F}));
  CHECK(same_bits(through(*make_format({"float16", {}}), {-1e30F}, false), std::vector<float>{-kInfinity}));
  CHECK(same_bits(through(*make_format({"bfloat16", {}}), {kLargest}, false), std::vector<float>{kInfinity}));
}

// ---- all formats ---------------------------------------------------------------------------------------------------
TEST(a_payload_has_the_size_of_its_chunks_and_nothing_else_is_written) {
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    for (const std::size_t count : kLengths) {
      const std::size_t size = format->chunk_bytes(count);
      CHECK_EQUAL(size % kFormatAlignBytes, 0U);
      CHECK_EQUAL(format->encoded_bytes(count), size);
      CHECK_EQUAL(format->encoded_bytes(3 * kChunk + count), 3 * format->chunk_bytes(kChunk) + size);
      for (const std::size_t offset : {0U, 1U, 7U}) {
        const auto from = random_floats(count + offset, count);
        const std::vector<float> carried(count, 0.25F);
        for (const bool feeds_back : {false, true}) {
          ChunkBytes bytes(size);
          ChunkBytes again(size);
          std::fill_n(again.data(), size, std::byte{0xFF});
          std::vector<float> left(count + 2, 7.0F);
          const Residual residual = feeds_back ? Residual{carried.data(), left.data() + 1} : Residual{};
          CHECK(format->encode(bytes.data(), from.data() + offset, count, 1.5F, residual));
          CHECK(format->encode(again.data(), from.data() + offset, count, 1.5F, residual));
          CHECK(bytes.guards_are_whole());
          CHECK(std::ranges::equal(bytes.bytes(), again.bytes()));  // every byte of the size was written
          CHECK_EQUAL(left.front(), 7.0F);
          CHECK_EQUAL(left.back(), 7.0F);
          CHECK(format->valid(bytes.data(), count));
          CHECK(format->finite(bytes.data(), count));
        }
      }
    }
    CHECK_EQUAL(format->encoded_bytes(0), 0U);
  }
}

TEST(any_part_of_a_chunk_decodes_as_in_the_whole) {
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    for (const std::size_t count : kLengths) {
      const auto from = random_floats(count, 3);
      ChunkBytes bytes(format->chunk_bytes(count));
      CHECK(format->encode(bytes.data(), from.data(), count, 1.0F, {}));
      std::vector<float> whole(count);
      format->decode(whole.data(), bytes.data(), count, 0, count);
      for (std::size_t begin = 0; begin < count; begin += kDecodeAlignFloats) {
        for (const std::size_t length : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, std::size_t{4096}, count}) {
          const std::size_t taken = std::min(length, count - begin);
          std::vector<float> part(taken + 2, 7.0F);
          format->decode(part.data() + 1, bytes.data(), count, begin, taken);
          CHECK(same_bits(std::span(part).subspan(1, taken), std::span(whole).subspan(begin, taken)));
          CHECK_EQUAL(part.front(), 7.0F);
          CHECK_EQUAL(part.back(), 7.0F);
        }
      }
    }
  }
}

TEST(what_is_not_sent_is_the_residual) {
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    const std::size_t count = 5001;
    const auto from = random_floats(count, 4);
    const auto carried = random_floats(count, 5);
    ChunkBytes bytes(format->chunk_bytes(count));
    std::vector<float> left(count);
    CHECK(format->encode(bytes.data(), from.data(), count, 0.37F, {carried.data(), left.data()}));
    std::vector<float> decoded(count);
    format->decode(decoded.data(), bytes.data(), count, 0, count);
    std::vector<float> in_place = carried;
    CHECK(format->encode(bytes.data(), from.data(), count, 0.37F, {in_place.data(), in_place.data()}));
    for (std::size_t i = 0; i < count; ++i) {
      CHECK_EQUAL(left[i], from[i] * 0.37F + carried[i] - decoded[i]);
      CHECK_EQUAL(in_place[i], left[i]);
      if (format->plain()) CHECK_EQUAL(bits_of(left[i]), 0U);
    }
  }
}

TEST(with_error_feedback_the_sum_of_what_arrives_is_the_sum_of_what_was_pushed) {
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    const std::size_t count = 700;
    const int steps = 300;
    std::vector<float> left(count, 0.0F);
    std::vector<float> carried(count, 0.0F);
    std::vector<float> decoded(count);
    std::vector<double> pushed_sum(count, 0.0);
    std::vector<double> arrived_sum(count, 0.0);
    ChunkBytes bytes(format->chunk_bytes(count));
    for (int step = 0; step < steps; ++step) {
      auto gradient = random_floats(count, 100 + static_cast<std::uint64_t>(step));
      for (float& value : gradient) value = value * 1e-3F + 1e-4F;
      left.swap(carried);
      CHECK(format->encode(bytes.data(), gradient.data(), count, 1.0F, {carried.data(), left.data()}));
      format->decode(decoded.data(), bytes.data(), count, 0, count);
      for (std::size_t i = 0; i < count; ++i) {
        pushed_sum[i] += static_cast<double>(gradient[i]);
        arrived_sum[i] += static_cast<double>(decoded[i]);
      }
    }
    // All that did not arrive is the last residual, but for the rounding of float32 sums.
    for (std::size_t i = 0; i < count; ++i) {
      const double missing = pushed_sum[i] - arrived_sum[i] - static_cast<double>(left[i]);
      CHECK(std::abs(missing) < 1e-6);
    }
  }
}

TEST(a_nan_or_infinity_anywhere_is_told_and_survives) {
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    for (const std::size_t count : {1U, 17U, 300U, 5000U}) {
      for (const float bad : {kInfinity, -kInfinity, kNotANumber, -kNotANumber, std::bit_cast<float>(0x7F800001U),
                              std::bit_cast<float>(0xFFFFFFFFU)}) {
        for (std::size_t at = 0; at < count; at += count / 7 + 1) {
          auto floats = random_floats(count, 6);
          floats[at] = bad;
          const auto decoded = through(*format, floats, false);
          if (format->for_pulls()) CHECK(!std::isfinite(decoded[at]));
          std::vector<float> left(count);
          const std::vector<float> carried(count, 0.0F);
          ChunkBytes bytes(format->chunk_bytes(count));
          CHECK(!format->encode(bytes.data(), floats.data(), count, 1.0F, {carried.data(), left.data()}));
          floats[at] = 1.0F;
          CHECK(format->encode(bytes.data(), floats.data(), count, 1.0F, {carried.data(), left.data()}));
          CHECK(!format->encode(bytes.data(), floats.data(), count, bad, {carried.data(), left.data()}));
          left = carried;
          left[at] = bad;
          CHECK(!format->encode(bytes.data(), floats.data(), count, 1.0F, {left.data(), left.data()}));
        }
      }
    }
  }
}

TEST(a_product_or_sum_that_overflows_is_told) {
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    std::vector<float> floats(100, 1.0F);
    std::vector<float> left(100);
    std::vector<float> carried(100, 0.0F);
    ChunkBytes bytes(format->chunk_bytes(100));
    floats[50] = 1e38F;
    CHECK(!format->encode(bytes.data(), floats.data(), 100, 10.0F, {}));
    CHECK(!format->encode(bytes.data(), floats.data(), 100, 10.0F, {carried.data(), left.data()}));
    carried[50] = 3e38F;
    CHECK(!format->encode(bytes.data(), floats.data(), 100, 1.0F, {carried.data(), left.data()}));
  }
}

TEST(the_bytes_are_the_same_on_every_machine) {
  // FNV-1a of the encodings, from a build whose loops are scalar.
  const std::string expected = "float32 1796ca65c3317edd bfloat16 3647c222de78acf3 float16 71fd216410fd74be ";
  auto floats = random_floats(kChunk, 7);
  for (std::size_t i = 0; i < floats.size(); ++i) floats[i] = std::ldexp(floats[i], -static_cast<int>(i % 29));
  const auto carried = random_floats(kChunk, 8);
  std::ostringstream hashes;
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    ChunkBytes bytes(format->chunk_bytes(kChunk));
    std::vector<float> left(kChunk);
    std::uint64_t hash = 0xCBF29CE484222325U;
    const auto add = [&](std::span<const std::byte> more) {
      for (const std::byte byte : more) hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001B3U;
    };
    CHECK(format->encode(bytes.data(), floats.data(), kChunk, 3.0F, {}));
    add(bytes.bytes());
    CHECK(format->encode(bytes.data(), floats.data(), kChunk, 3.0F, {carried.data(), left.data()}));
    add(bytes.bytes());
    add(std::as_bytes(std::span(left)));
    hashes << spec.name << ' ' << std::hex << hash << ' ';
  }
  CHECK_EQUAL(hashes.str(), expected);
}

TEST(random_bytes_of_a_peer_decode_within_bounds) {
  std::mt19937 random(9);
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    for (int i = 0; i < 200; ++i) {
      const std::size_t count = 1 + random() % kChunk;
      ChunkBytes bytes(format->chunk_bytes(count));
      for (std::size_t at = 0; at < bytes.bytes().size(); ++at) bytes.data()[at] = static_cast<std::byte>(random());
      static_cast<void>(format->valid(bytes.data(), count));
      const bool finite = format->finite(bytes.data(), count);
      std::vector<float> decoded(count + 2, 7.0F);
      format->decode(decoded.data() + 1, bytes.data(), count, 0, count);
      const auto all_finite = std::all_of(decoded.begin(), decoded.end(), [](float v) { return std::isfinite(v); });
      if (finite) CHECK(all_finite);
      CHECK_EQUAL(decoded.front(), 7.0F);
      CHECK_EQUAL(decoded.back(), 7.0F);
    }
  }
}

// ---- specs ---------------------------------------------------------------------------------------------------------
namespace {

ErrorCode making(const FormatSpec& spec) {
  try {
    static_cast<void>(make_format(spec));
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kNone;
}

std::vector<std::byte> written(const FormatSpec& spec) {
  Writer writer;
  write_format(writer, spec);
  return writer.take();
}

ErrorCode reading(const std::vector<std::byte>& bytes) {
  try {
    Reader reader(bytes);
    static_cast<void>(read_format(reader));
    reader.expect_end();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kNone;
}

}  // namespace

TEST(a_format_that_is_not_known_is_refused_by_name) {
  for (const FormatSpec& spec : kFormats) CHECK(making(spec) == ErrorCode::kNone);
  CHECK(making({"float8", {}}) == ErrorCode::kConfig);
  CHECK(making({"", {}}) == ErrorCode::kConfig);
  CHECK(making({"float16", {{"ratio", 0.5}}}) == ErrorCode::kConfig);
}

TEST(a_spec_survives_its_own_encoding_and_no_other_bytes_hurt) {
  for (const FormatSpec& spec : kFormats) {
    const std::vector<std::byte> good = written(spec);
    Reader reader(good);
    CHECK(read_format(reader) == complete_format(spec));
    reader.expect_end();
    for (std::size_t length = 0; length < good.size(); ++length) {
      CHECK(reading({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length)}) == ErrorCode::kProtocol);
    }
    std::mt19937 random(10);
    for (int i = 0; i < 20'000; ++i) {
      std::vector<std::byte> bad = good;
      for (int change = 0; change < 3; ++change) bad[random() % bad.size()] = static_cast<std::byte>(random());
      const ErrorCode code = reading(bad);
      CHECK(code == ErrorCode::kNone || code == ErrorCode::kProtocol);
    }
  }
}

TEST(a_spec_that_is_too_long_or_says_a_thing_twice_is_refused) {
  Writer long_name;
  long_name.text(std::string(65, 'x'));
  long_name.number(std::uint8_t{0});
  CHECK(reading(long_name.take()) == ErrorCode::kProtocol);
  Writer twice;
  twice.text("topk");
  twice.number(std::uint8_t{2});
  for (int i = 0; i < 2; ++i) {
    twice.text("ratio");
    twice.number(0.5);
  }
  CHECK(reading(twice.take()) == ErrorCode::kProtocol);
  Writer many;
  many.text("topk");
  many.number(std::uint8_t{17});
  for (int i = 0; i < 17; ++i) {
    many.text(std::to_string(i));
    many.number(0.5);
  }
  CHECK(reading(many.take()) == ErrorCode::kProtocol);
}
