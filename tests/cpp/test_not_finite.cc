// Gradients with NaN or infinity that reach a store: what it applies of them, and whom it tells.
#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "check.h"
#include "random_floats.h"
#include "store_case.h"
#include "wire/vector_decoder.h"

namespace {

using namespace distnet;

constexpr std::size_t kSize = 50'000;  // several blocks, chunks and format chunks; the last ones short
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
const std::vector<std::size_t> kPlaces = {0, 1, kBlockFloats - 1, kBlockFloats, kStoreChunkFloats + 5, kSize - 1};

// What a store in place applies whole or not at all: a gradient is applied as it lies, or decoded first.
std::size_t unit_of(const std::string& form) { return form == "float32" ? kStripFloats : kBlockFloats; }

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kUpdates = 30;
#else
constexpr int kUpdates = 500;
#endif

UpdateRuleSpec rule_named(const std::string& optimizer) {
  UpdateRuleSpec rule = adding_rule();
  rule.optimizer.name = optimizer;
  return rule;
}

std::vector<float> read(Store& store) {
  std::vector<float> out(store.size());
  store.read(out);
  return out;
}

std::vector<std::vector<float>> state_of(Store& store) {
  const auto count = static_cast<std::size_t>(store.state_vectors());
  const std::size_t first = store.cut_vectors() - count;
  std::vector<std::vector<float>> state(count);
  store.reserve_cut();
  store.begin_cut();
  for (std::size_t chunk = 0; chunk < store.cut_chunks(); ++chunk) {
    const std::uint64_t floats = store.cut_chunk_floats(chunk);
    std::vector<float> piece(store.cut_vectors() * floats);
    store.read_cut(chunk, piece.data());
    for (std::size_t index = 0; index < count; ++index) {
      const auto begin = piece.begin() + static_cast<std::ptrdiff_t>((first + index) * floats);
      state[index].insert(state[index].end(), begin, begin + static_cast<std::ptrdiff_t>(floats));
    }
  }
  store.end_cut();
  return state;
}

// An update of one push or of a round, which notes how it ended.
class NotedUpdate final : public Update {
 public:
  explicit NotedUpdate(std::vector<GradientView> terms) : terms_(std::move(terms)) { gradient.terms = terms_; }

  void on_applied(std::uint64_t) override { ++applied; }
  void on_refused(bool in_part) override {
    ++refusals;
    refused_in_part = in_part;
  }

  int applied = 0;
  int refusals = 0;
  bool refused_in_part = false;

 private:
  const std::vector<GradientView> terms_;
};

// A gradient as it lies in a server: as float32, or encoded.
class Sent {
 public:
  Sent(const std::vector<float>& values, const std::string& format) : values_(values) {
    if (format == "float32") {
      return;
    }
    const std::shared_ptr<const WireFormat> wire = make_format({format, {}});
    bytes_.resize(wire->encoded_bytes(values.size()) + kFormatAlignBytes);
    std::byte* const aligned =
        reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(bytes_.data()) + kFormatAlignBytes - 1) /
                                     kFormatAlignBytes * kFormatAlignBytes);
    for (std::size_t at = 0; at < values.size(); at += kFormatChunkFloats) {
      const std::size_t count = std::min(kFormatChunkFloats, values.size() - at);
      wire->encode(aligned + wire->chunk_offset_bytes(at / kFormatChunkFloats), values.data() + at, count, 1.0F, {});
    }
    encoded_ = aligned;
    decoder_ = std::make_unique<VectorDecoder>(wire, values.size());
  }

  GradientView view() const {
    return decoder_ ? GradientView::encoded(encoded_, *decoder_, values_.size())
                    : GradientView::dense(values_.data(), values_.size());
  }

 private:
  std::vector<float> values_;
  std::vector<std::byte> bytes_;
  const std::byte* encoded_ = nullptr;
  std::unique_ptr<VectorDecoder> decoder_;
};

const std::vector<std::string> kForms = {"float32", "bfloat16", "float16", "int8", "topk"};

}  // namespace

TEST(a_store_of_versions_applies_nothing_of_a_bad_gradient_in_any_form) {
  for (const std::string optimizer : {"sgd", "momentum", "adam"}) {
    for (const std::string& form : kForms) {
      for (const float bad : {kNan, kInfinity, -kInfinity}) {
        for (const std::size_t place : kPlaces) {
          const auto store = make_test_store("mutex", rule_named(optimizer), random_floats(kSize, 1));
          store->apply(random_floats(kSize, 2));
          const std::vector<float> before = read(*store);
          const auto state_before = state_of(*store);
          std::vector<float> gradient = random_floats(kSize, 3);
          gradient[place] = bad;
          const Sent sent(gradient, form);
          NotedUpdate update({sent.view()});
          store->submit(update);
          CHECK(update.refused() && update.refusals == 1 && update.applied == 0 && !update.refused_in_part);
          CHECK_EQUAL(store->version(), 1U);
          CHECK(read(*store) == before);
          CHECK(state_of(*store) == state_before);
          store->apply(random_floats(kSize, 4));  // the store goes on
          CHECK_EQUAL(store->version(), 2U);
        }
      }
    }
  }
}

TEST(a_store_in_place_applies_no_bad_strip_and_keeps_what_came_before) {
  for (const std::string optimizer : {"sgd", "momentum", "adam"}) {
    for (const std::string& form : kForms) {
      for (const std::size_t place : kPlaces) {
        const auto store = make_test_store("lock-free", rule_named(optimizer), std::vector<float>(kSize, 0.0F));
        std::vector<float> gradient(kSize, 1.0F);
        gradient[place] = kNan;
        const Sent sent(gradient, form);
        NotedUpdate update({sent.view()});
        store->submit(update);
        CHECK(update.refused() && update.refusals == 1 && update.applied == 0 && update.refused_in_part);
        CHECK_EQUAL(store->version(), 0U);
        const std::vector<float> after = read(*store);
        const auto state = state_of(*store);
        const std::size_t unit = unit_of(form);
        const std::size_t bad = place / unit * unit;
        for (std::size_t i = 0; i < kSize; ++i) {
          CHECK(std::isfinite(after[i]));
          CHECK(i < bad || i >= bad + unit || after[i] == 0.0F);
          const bool before_in_chunk = i >= place / kStoreChunkFloats * kStoreChunkFloats && i < bad;
          CHECK(!before_in_chunk || form == "topk" || after[i] != 0.0F);
          for (const std::vector<float>& vector : state) {
            CHECK(std::isfinite(vector[i]));
          }
        }
        store->apply(std::vector<float>(kSize, 1.0F));
        CHECK_EQUAL(store->version(), 1U);
        CHECK(read(*store)[place] != 0.0F);
      }
    }
  }
}

TEST(bad_gradients_among_good_ones_lose_none_of_the_good_ones) {
  for (const bool standalone : {false, true}) {
    const auto store = make_test_store("lock-free", adding_rule(), std::vector<float>(kSize, 0.0F));
    std::vector<float> bad(kSize, -1.0F);
    for (std::size_t i = 0; i < kSize; i += kStripFloats) {
      bad[i + (i / kStripFloats) % 3] = kNan;  // in every strip, so that nothing at all of it may be applied
    }
    const std::vector<float> good(kSize, -1.0F);
    run_together(6, [&](int index) {
      for (int i = 0; i < kUpdates; ++i) {
        const std::vector<float>& gradient = index % 2 == 0 ? good : bad;
        if (standalone) {
          bool refused = false;
          try {
            store->apply(gradient);
          } catch (const Error& error) {
            refused = error.code() == ErrorCode::kNonFiniteGradient;
          }
          CHECK_EQUAL(refused, index % 2 != 0);
          continue;
        }
        NotedUpdate update({GradientView::dense(gradient.data(), kSize)});
        store->submit(update);
        update.wait_finished();
        CHECK_EQUAL(update.refused(), index % 2 != 0);
        CHECK_EQUAL(update.applied + update.refusals, 1);
      }
    });
    CHECK_EQUAL(store->version(), 3U * kUpdates);
    for (const float value : read(*store)) {
      CHECK_EQUAL(value, 3.0F * kUpdates);
    }
  }
}

TEST(a_gradient_that_the_caller_holds_is_refused_with_an_error) {
  for (const char* const guard : {"mutex", "lock-free"}) {
    const auto store = make_test_store(guard, adding_rule(), std::vector<float>(kSize, 0.0F));
    std::vector<float> gradient(kSize, -1.0F);
    gradient[7] = kInfinity;
    CHECK_THROWS(store->apply(gradient), Error);
    CHECK_EQUAL(store->version(), 0U);
    CHECK_EQUAL(read(*store)[7], 0.0F);
  }
}

TEST(the_member_of_a_round_whose_gradient_is_bad_is_named) {
  for (const std::string optimizer : {"sgd", "adam"}) {
    for (std::size_t spoilt = 0; spoilt < 3; ++spoilt) {
      const auto store = make_test_store("mutex", rule_named(optimizer), std::vector<float>(kSize, 0.0F));
      std::vector<std::vector<float>> gradients(3, std::vector<float>(kSize, 1.0F));
      gradients[spoilt][kSize / 2] = -kInfinity;
      std::vector<GradientView> terms;
      for (const std::vector<float>& gradient : gradients) {
        terms.push_back(GradientView::dense(gradient.data(), kSize));
      }
      NotedUpdate round(terms);
      store->submit(round);
      CHECK(round.refused());
      CHECK_EQUAL(round.spoilt_term, spoilt);
      CHECK(read(*store) == std::vector<float>(kSize, 0.0F));
    }
  }
}

// A peer that shares the memory can write it after all of it was looked at.
TEST(a_value_that_a_peer_spoils_after_it_was_checked_counts_as_0) {
  for (const char* const guard : {"mutex", "lock-free"}) {
    for (const std::string optimizer : {"sgd", "momentum"}) {
      for (const std::size_t members : {1U, 2U, 3U}) {
        const auto store = make_test_store(guard, rule_named(optimizer), std::vector<float>(kSize, 0.0F));
        std::vector<float> gradient(kSize, -1.0F);
        const GradientView term = GradientView::dense(gradient.data(), kSize);
        NotedUpdate update(std::vector<GradientView>(members, term));
        update.gradient.divisor = static_cast<float>(members);
        update.gradient.checked = true;
        gradient[kBlockFloats + 3] = kNan;
        store->submit(update);
        CHECK(!update.refused());
        const std::vector<float> after = read(*store);
        for (std::size_t i = 0; i < kSize; ++i) {
          CHECK_EQUAL(after[i], i == kBlockFloats + 3 ? 0.0F : 1.0F);
        }
      }
    }
  }
}

// The division overflows, and the clipping would find that.
TEST(a_finite_gradient_whose_quotient_overflows_is_clipped_and_not_refused) {
  UpdateRuleSpec rule = adding_rule();
  rule.clip_value = 1.0;
  const auto store = make_test_store("lock-free", rule, std::vector<float>(kSize, 0.0F));
  const std::vector<float> gradient(kSize, std::numeric_limits<float>::max());
  NotedUpdate update({GradientView::dense(gradient.data(), kSize)});
  update.gradient.divisor = 0.5F;
  store->submit(update);
  CHECK(!update.refused());
  CHECK_EQUAL(read(*store)[kSize - 1], -1.0F);
}

TEST(a_sum_of_finite_gradients_that_overflows_is_not_refused) {
  const auto store = make_test_store("mutex", adding_rule(), std::vector<float>(kSize, 0.0F));
  const std::vector<float> gradient(kSize, std::numeric_limits<float>::max());
  NotedUpdate round(std::vector<GradientView>(2, GradientView::dense(gradient.data(), kSize)));
  store->submit(round);
  CHECK(!round.refused());
  CHECK_EQUAL(read(*store)[0], -kInfinity);
}
