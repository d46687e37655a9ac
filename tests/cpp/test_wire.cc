// Bytes of a hostile or broken peer: a decoder takes them as they were meant, or throws Error(kProtocol). Nothing else.
#include <limits>
#include <random>

#include "check.h"
#include "wire/client_messages.h"
#include "wire/control_messages.h"
#include "wire/gathering_messages.h"
#include "wire/snapshot_messages.h"

namespace {

using namespace distnet;
using Bytes = std::vector<std::byte>;

Welcome good_welcome() {
  Welcome welcome;
  welcome.session = 7;
  welcome.manifest = make_manifest(true, {{"kernel", {3, 5}}, {"bias", {5}}, {"none", {0, 2}}});
  welcome.range = shard_range(welcome.manifest, 0, 1);
  welcome.max_inflight = 2;
  welcome.buffer_bytes = welcome.range.size() * sizeof(float);
  return welcome;
}

template <typename Message>
ErrorCode decoding(const Bytes& bytes) {
  try {
    static_cast<void>(Message::decode(bytes));
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kNone;
}

// Every prefix is refused; every byte changed, and every tail of noise, is taken or refused.
template <typename Message>
void attack(const Message& message) {
  const Bytes good = message.encode();
  CHECK(decoding<Message>(good) == ErrorCode::kNone);
  for (std::size_t length = 0; length < good.size(); ++length) {
    CHECK(decoding<Message>(Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length))) ==
          ErrorCode::kProtocol);
  }
  Bytes longer = good;
  longer.push_back(std::byte{0});
  CHECK(decoding<Message>(longer) == ErrorCode::kProtocol);
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    Bytes bad = good;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int change = 0; change < changes && !bad.empty(); ++change) {
      bad[random() % bad.size()] = static_cast<std::byte>(random());
    }
    const ErrorCode code = decoding<Message>(bad);
    CHECK(code == ErrorCode::kNone || code == ErrorCode::kProtocol);
  }
}

BroughtOptimizer good_optimizer() {
  BroughtOptimizer optimizer;
  optimizer.text = "as clients say it";
  optimizer.name = "adam";
  optimizer.settings = {{"beta1", 0.9}, {"beta2", 0.999}};
  optimizer.learning_rate = 0.1;
  optimizer.groups = {{"head.*", 0.5, 0.25}, {"*.bias", 1.0, std::nullopt}};
  return optimizer;
}

}  // namespace

TEST(an_optimizer_is_read_as_it_was_written_and_refused_where_it_is_too_large) {
  BroughtOptimizer optimizer = good_optimizer();
  Writer writer;
  write_optimizer(writer, optimizer);
  const Bytes written = writer.take();
  Reader reader(written);
  CHECK(read_optimizer(reader) == optimizer);
  CHECK(reader.left() == 0);
  check_room(optimizer);
  while (optimizer.groups.size() < 4096) {
    optimizer.groups.push_back({"pattern", 2.0, std::nullopt});
  }
  CHECK_THROWS(check_room(optimizer), Error);
  Writer large;
  write_optimizer(large, optimizer);
  const Bytes too_large = large.take();
  Reader of_large(too_large);
  CHECK_THROWS(read_optimizer(of_large), Error);
}

TEST(every_message_survives_its_own_encoding_and_no_other_bytes_hurt) {
  attack(ProbeReply{{1, 2}, "local", "shm://a,shm://b"});
  Hello hello;
  hello.id = {1, 2};
  hello.grant = {3, 4, {5, 9}, 6, {7, 8}};
  attack(hello);
  attack(BringGrant{1, {2, 3}});
  attack(Bring{{1, 2}, {3, {4, 5}}});
  attack(Progress{1, 2, true});
  attack(Notice{Notice::Kind::kWarning, "two"});
  attack(Follow{1, {2, 3}});
  const Manifest manifest = good_welcome().manifest;
  attack(Initial{manifest, shard_range(manifest, 0, 1)});
  attack(Initial{manifest, shard_range(manifest, 0, 1), good_optimizer()});
  attack(good_welcome());
  attack(Refusal{ErrorCode::kConfig, "no"});
  attack(Attach{1, 2});
  attack(RoundEvent{3, 4, 5, SessionEnd::kDone});
  attack(RoundMembers{5, {{0, 1}, {1, 7}, {2, 3}}});
  attack(RoundMembers{5, {{0, 1}}, 0.25});
  attack(RoundMembers{5, {{0, 1}}, 0.25, 0.5, {0.5, 0.25}});
  attack(SetLearningRate{0.25});
  attack(Save{3, {std::byte{1}, std::byte{2}}});
  attack(SaveAnswer{"no"});
  attack(CutMade{1, 2, 3, true, 2, 0.25, 7});
  const Bytes data(9);
  attack(SavedPiece{1, 2, data});
}

TEST(a_learning_rate_on_the_wire_is_finite_and_not_negative) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double rate : {infinity, -infinity, -1e-9}) {
    CHECK(decoding<SetLearningRate>(SetLearningRate{rate}.encode()) == ErrorCode::kProtocol);
    CHECK(decoding<RoundMembers>(RoundMembers{5, {}, rate}.encode()) == ErrorCode::kProtocol);
    CHECK(decoding<RoundMembers>(RoundMembers{5, {}, {}, rate}.encode()) == ErrorCode::kProtocol);
  }
  const double none = std::numeric_limits<double>::quiet_NaN();
  CHECK(decoding<SetLearningRate>(SetLearningRate{none}.encode()) == ErrorCode::kProtocol);
  CHECK(!RoundMembers::decode(RoundMembers{5, {}}.encode()).set_rate);
  CHECK_EQUAL(RoundMembers::decode(RoundMembers{5, {}, 1e-300}.encode()).set_rate.value_or(0.0), 1e-300);
  CHECK_EQUAL(RoundMembers::decode(RoundMembers{5, {}, {}, 1e-300}.encode()).push_rate.value_or(0.0), 1e-300);
}

TEST(groups_with_learning_rates_are_bounded_and_so_are_their_rates) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const RoundMembers good{5, {}, {}, {}, {nan, 0.0, 1e-300}};
  const RoundMembers read = RoundMembers::decode(good.encode());
  CHECK(read.group_rates.size() == 3 && std::isnan(read.group_rates[0]) && read.group_rates[2] == 1e-300);
  for (const double rate : {std::numeric_limits<double>::infinity(), -1e-9}) {
    CHECK(decoding<RoundMembers>(RoundMembers{5, {}, {}, {}, {0.5, rate}}.encode()) == ErrorCode::kProtocol);
  }
  const std::vector<double> most(kMaxRatedGroups, 1.0);
  const std::vector<double> too_many(kMaxRatedGroups + 1, 1.0);
  CHECK(decoding<RoundMembers>(RoundMembers{5, {}, {}, {}, most}.encode()) == ErrorCode::kNone);
  CHECK(decoding<RoundMembers>(RoundMembers{5, {}, {}, {}, too_many}.encode()) == ErrorCode::kProtocol);
  Welcome welcome = good_welcome();
  welcome.groups = {"*bias", "", std::string(kMaxPatternBytes, 'a')};
  CHECK(Welcome::decode(welcome.encode()).groups == welcome.groups);
  welcome.groups.push_back(std::string(kMaxPatternBytes + 1, 'a'));
  CHECK(decoding<Welcome>(welcome.encode()) == ErrorCode::kProtocol);
  welcome.groups.assign(kMaxRatedGroups + 1, "a");
  CHECK(decoding<Welcome>(welcome.encode()) == ErrorCode::kProtocol);
}

TEST(more_bytes_than_a_rank_may_save_are_refused) {
  CHECK(decoding<Save>(Save{1, Bytes(kMaxSavedBytes)}.encode()) == ErrorCode::kNone);
  CHECK(decoding<Save>(Save{1, Bytes(kMaxSavedBytes + 1)}.encode()) == ErrorCode::kProtocol);
  CHECK((Save{1, Bytes(kMaxSavedBytes)}.encode().size()) == most_question_bytes(ControlKind::kSave));
  CHECK_EQUAL(most_question_bytes(ControlKind::kStats), kMaxQuestionBytes);
}

TEST(a_hello_without_the_clients_number_is_refused) {
  CHECK(decoding<Hello>(Hello{}.encode()) == ErrorCode::kProtocol);
}

TEST(a_models_tensors_are_cut_into_the_slices_of_its_shards) {
  const Manifest manifest = make_manifest(false, {{"a", {3000}}, {"empty", {0}}, {"b", {1000}}});
  std::vector<float> a(3000, 1.0F);
  std::vector<float> b(1000, 2.0F);
  const float* const tensors[] = {a.data(), nullptr, b.data()};
  std::uint64_t counted = 0;
  for (std::uint32_t shard = 0; shard < 3; ++shard) {
    const ShardRange range = shard_range(manifest, shard, 3);
    const std::vector<float> values = gather(manifest, range, tensors);
    CHECK_EQUAL(values.size(), range.size());
    for (const TensorSlice& slice : slices_of(manifest, range)) {
      const Tensor& tensor = manifest.tensors[slice.tensor];
      CHECK_EQUAL(tensor.offset + slice.tensor_offset, range.begin + slice.shard_offset);
      CHECK_EQUAL(values[slice.shard_offset], slice.tensor == 0 ? 1.0F : 2.0F);
      CHECK_EQUAL(values[slice.shard_offset + slice.count - 1], slice.tensor == 0 ? 1.0F : 2.0F);
      counted += slice.count;
    }
  }
  CHECK_EQUAL(counted, 4000U);
}

TEST(a_manifest_that_claims_more_tensors_than_are_taken_is_refused_before_they_are_read) {
  Writer writer;
  writer.number(std::uint8_t{1});
  writer.number(std::numeric_limits<std::uint32_t>::max());
  const Bytes bytes = writer.take();
  Reader reader(bytes);
  CHECK_THROWS(read_manifest(reader), Error);
}

TEST(an_ema_that_lies_outside_its_buffer_is_refused) {
  Welcome welcome = good_welcome();
  welcome.buffer_bytes *= 2;
  welcome.ema_offset_bytes = welcome.buffer_bytes / 2;
  CHECK(decoding<Welcome>(welcome.encode()) == ErrorCode::kNone);
  welcome.ema_offset_bytes += 64;
  CHECK(decoding<Welcome>(welcome.encode()) == ErrorCode::kProtocol);
  // Its end would overflow to a small number.
  welcome.ema_offset_bytes = std::numeric_limits<std::uint64_t>::max() - 63;
  CHECK(decoding<Welcome>(welcome.encode()) == ErrorCode::kProtocol);
}

TEST(a_hello_with_a_timeout_that_is_no_time_is_refused) {
  for (const double timeout : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    Hello hello;
    hello.id = {1, 2};
    hello.timeout_s = timeout;
    CHECK(decoding<Hello>(hello.encode()) == ErrorCode::kProtocol);
  }
}

TEST(the_messages_of_gatherings_are_taken_as_they_were_meant_or_refused) {
  attack(GatherAsk{7, GatherKind::kFinish});
  attack(GatherVerdict{7, ErrorCode::kPeerClosed, "rank 1 died", 9});
  CHECK((GatherAsk{7, GatherKind::kFinish}.encode().size() <= kMaxQuestionBytes));
  for (const std::uint8_t kind : {std::uint8_t{0}, std::uint8_t{3}, std::uint8_t{255}}) {
    CHECK(decoding<GatherAsk>(GatherAsk{7, static_cast<GatherKind>(kind)}.encode()) == ErrorCode::kProtocol);
  }
}

TEST(a_timeout_is_taken_within_the_servers_bounds_and_no_other_is_welcomed) {
  CHECK(session_timeout_s(1e-9) == kLeastTimeoutSeconds);
  CHECK(session_timeout_s(12.5) == 12.5);
  CHECK(session_timeout_s(std::numeric_limits<double>::infinity()) == kMostTimeoutSeconds);
  for (const double timeout : {0.0, 0.5, 1e9, std::numeric_limits<double>::quiet_NaN()}) {
    Welcome welcome = good_welcome();
    welcome.timeout_s = timeout;
    CHECK(decoding<Welcome>(welcome.encode()) == ErrorCode::kProtocol);
  }
}

TEST(a_manifest_is_taken_where_a_message_carries_it_and_refused_otherwise) {
  constexpr std::size_t kNameBytes = 1000;
  const auto named = [](std::size_t count) {
    std::vector<NamedShape> tensors;
    for (std::size_t i = 0; i < count; ++i) {
      const std::string number = std::to_string(i);
      tensors.push_back({std::string(kNameBytes - number.size(), '0') + number, {3}});
    }
    return tensors;
  };
  const std::size_t tensor_bytes = 4 + kNameBytes + 1 + 8;
  const std::size_t most = (kMaxManifestBytes - (64U << 10U)) / tensor_bytes;
  Welcome welcome = good_welcome();
  welcome.manifest = make_manifest(true, named(most));
  welcome.range = shard_range(welcome.manifest, 0, 1);
  welcome.buffer_bytes = welcome.range.size() * sizeof(float);
  CHECK(welcome.encode().size() <= kMaxManifestBytes);
  CHECK((Initial{welcome.manifest, welcome.range}.encode().size() <= kMaxManifestBytes));
  CHECK_THROWS(make_manifest(true, named(most + 1)), Error);
}
