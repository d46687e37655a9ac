// What holds for all wire formats: sizes, parts, residuals, values that are not finite, hostile bytes; and their specs.
#include <bit>
#include <cmath>
#include <random>
#include <sstream>

#include "check.h"
#include "format_case.h"
#include "random_floats.h"

namespace {

using namespace distnet;

const std::vector<FormatSpec> kFormats = {{"float32"}, {"bfloat16"}, {"float16"},
                                          {"int8"},    {"topk"},     {"topk", {{"ratio", 0.2}}}};

}  // namespace

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
      for (std::size_t begin = 0; begin < count; begin += kDecodeStepFloats) {
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
      if (format->plain()) {
        CHECK_EQUAL(std::bit_cast<std::uint32_t>(left[i]), 0U);
      }
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
      for (float& value : gradient) {
        value = value * 1e-3F + 1e-4F;
      }
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
          if (format->for_pulls()) {
            CHECK(!std::isfinite(decoded[at]));
          }
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
  const std::string expected =
      "float32 1796ca65c3317edd bfloat16 3647c222de78acf3 float16 71fd216410fd74be "
      "int8 d21d48f2c426dc3c topk 172486eb1bbe51ef topk 9e7bd2d76749787a ";
  auto floats = random_floats(kChunk, 7);
  for (std::size_t i = 0; i < floats.size(); ++i) {
    floats[i] = std::ldexp(floats[i], -static_cast<int>(i % 29));
  }
  const auto carried = random_floats(kChunk, 8);
  std::ostringstream hashes;
  for (const FormatSpec& spec : kFormats) {
    const auto format = make_format(spec);
    ChunkBytes bytes(format->chunk_bytes(kChunk));
    std::vector<float> left(kChunk);
    std::uint64_t hash = 0xCBF29CE484222325U;
    const auto add = [&](std::span<const std::byte> more) {
      for (const std::byte byte : more) {
        hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001B3U;
      }
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
      for (std::size_t at = 0; at < bytes.bytes().size(); ++at) {
        bytes.data()[at] = static_cast<std::byte>(random());
      }
      std::vector<float> decoded(count + 2, 7.0F);
      const bool finite = format->decode(decoded.data() + 1, bytes.data(), count, 0, count);
      const auto all_finite = std::all_of(decoded.begin(), decoded.end(), [](float v) { return std::isfinite(v); });
      CHECK_EQUAL(finite, all_finite);
      CHECK(all_finite || !format->finite(bytes.data(), count));
      CHECK_EQUAL(decoded.front(), 7.0F);
      CHECK_EQUAL(decoded.back(), 7.0F);
    }
  }
}

TEST(a_peer_cannot_hide_an_infinity_from_a_check_of_int8) {
  const auto format = make_format({"int8", {}});
  const float largest = std::numeric_limits<float>::max();
  const float overflows = std::nextafter(largest / 128.0F, largest);  // times 128, not times 127
  const std::vector<std::pair<float, bool>> steps = {{1.0F, true},          {-1.0F, true},      {-kInfinity, false},
                                                     {-kNotANumber, false}, {overflows, false}, {-overflows, false}};
  for (const auto& [step, expected] : steps) {
    ChunkBytes bytes(format->chunk_bytes(300));
    std::fill_n(bytes.as<float>(), kChunk / kInt8GroupFloats, step);
    std::fill_n(bytes.as<std::int8_t>() + sizeof(float) * (kChunk / kInt8GroupFloats), 300, std::int8_t{-128});
    std::vector<float> decoded(300);
    CHECK_EQUAL(format->finite(bytes.data(), 300), expected);
    CHECK_EQUAL(format->decode(decoded.data(), bytes.data(), 300, 0, 300), expected);
  }
  ChunkBytes bytes(format->chunk_bytes(2));  // an encoder makes such a step, and no byte of -128
  const std::vector<float> floats = {largest * 0.995F, 1.0F};
  CHECK(format->encode(bytes.data(), floats.data(), 2, 1.0F, {}));
  CHECK(format->finite(bytes.data(), 2));
}

TEST(topk_is_not_for_parameters) {
  for (const FormatSpec& spec : kFormats) {
    CHECK_EQUAL(make_format(spec)->for_pulls(), spec.name != "topk");
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
  for (const FormatSpec& spec : kFormats) {
    CHECK(making(spec) == ErrorCode::kNone);
  }
  CHECK(making({"float8", {}}) == ErrorCode::kConfig);
  CHECK(making({"", {}}) == ErrorCode::kConfig);
  CHECK(making({"float16", {{"ratio", 0.5}}}) == ErrorCode::kConfig);
  CHECK(making({"topk", {{"rate", 0.5}}}) == ErrorCode::kConfig);
  for (const double ratio :
       {0.0, -1.0, 1.001, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(making({"topk", {{"ratio", ratio}}}) == ErrorCode::kConfig);
  }
}

TEST(a_complete_spec_spells_out_its_defaults) {
  CHECK(complete_format({"topk", {}}) == FormatSpec({"topk", {{"ratio", 0.01}}}));
  CHECK(complete_format({"topk", {{"ratio", 0.5}}}) == FormatSpec({"topk", {{"ratio", 0.5}}}));
  CHECK(complete_format({}) == FormatSpec({"float32", {}}));
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
      for (int change = 0; change < 3; ++change) {
        bad[random() % bad.size()] = static_cast<std::byte>(random());
      }
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
