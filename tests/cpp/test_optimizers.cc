// Every optimizer against a plain scalar reference, bit for bit: the vectorised kernels may not round differently.
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>

#include "base/error.h"
#include "base/units.h"
#include "check.h"
#include "optim/optimizer.h"
#include "optim/update_rule.h"
#include "random_floats.h"

namespace {

using namespace distnet;

// One element, one step. Written from the papers' formulas in PyTorch's order, without the kernels' code.
struct Element {
  float parameter;
  float state[kMaxStateVectors] = {};
};
using Reference = std::function<void(Element&, float gradient, float rate, std::uint64_t update)>;

struct Case {
  const char* label;
  OptimizerSpec spec;
  Reference reference;
};

void adam_reference(Element& e, float g, float rate_over_correction, float root_correction2) {
  e.state[0] = e.state[0] + static_cast<float>(1.0 - 0.9) * (g - e.state[0]);
  e.state[1] = 0.999F * e.state[1] + static_cast<float>(1.0 - 0.999) * g * g;
  e.parameter = e.parameter - rate_over_correction * e.state[0] / (std::sqrt(e.state[1]) / root_correction2 + 1e-8F);
}

float first_correction(double rate, std::uint64_t update) {
  return static_cast<float>(rate / (1.0 - std::pow(0.9, static_cast<double>(update) + 1.0)));
}

float second_correction(std::uint64_t update) {
  return static_cast<float>(std::sqrt(1.0 - std::pow(0.999, static_cast<double>(update) + 1.0)));
}

constexpr double kRate = 0.05;

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"sgd", {"sgd", {}}, [](Element& e, float g, float rate, std::uint64_t) { e.parameter -= rate * g; }},
      {"sgd with decay",
       {"sgd", {{"weight_decay", 0.01}}},
       [](Element& e, float g, float rate, std::uint64_t) { e.parameter -= rate * (g + 0.01F * e.parameter); }},
      {"heavy ball",
       {"momentum", {}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.9F * e.state[0] + g;
         e.parameter -= rate * e.state[0];
       }},
      {"nesterov",
       {"momentum", {{"nesterov", 1.0}, {"momentum", 0.8}, {"weight_decay", 0.01}}},
       [](Element& e, float gradient, float rate, std::uint64_t) {
         const float g = gradient + 0.01F * e.parameter;
         e.state[0] = 0.8F * e.state[0] + g;
         e.parameter -= rate * (g + 0.8F * e.state[0]);
       }},
      {"adagrad",
       {"adagrad", {{"initial_accumulator_value", 0.1}, {"learning_rate_decay", 0.5}}},
       [](Element& e, float g, float, std::uint64_t update) {
         const float rate = static_cast<float>(kRate / (1.0 + static_cast<double>(update) * 0.5));
         if (update == 0) {
           e.state[0] = 0.1F;
         }
         e.state[0] = e.state[0] + g * g;
         e.parameter -= rate * g / (std::sqrt(e.state[0]) + 1e-10F);
       }},
      {"rmsprop",
       {"rmsprop", {}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.99F * e.state[0] + static_cast<float>(1.0 - 0.99) * g * g;
         e.parameter -= rate * g / (std::sqrt(e.state[0]) + 1e-8F);
       }},
      {"rmsprop with momentum",
       {"rmsprop", {{"momentum", 0.5}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.99F * e.state[0] + static_cast<float>(1.0 - 0.99) * g * g;
         e.state[1] = 0.5F * e.state[1] + g / (std::sqrt(e.state[0]) + 1e-8F);
         e.parameter -= rate * e.state[1];
       }},
      {"adam",
       {"adam", {}},
       [](Element& e, float g, float, std::uint64_t update) {
         adam_reference(e, g, first_correction(kRate, update), second_correction(update));
       }},
      {"adamw",
       {"adamw", {}},
       [](Element& e, float g, float, std::uint64_t update) {
         e.parameter = static_cast<float>(1.0 - kRate * 0.01) * e.parameter;
         adam_reference(e, g, first_correction(kRate, update), second_correction(update));
       }},
  };
  return all;
}

bool same_bits(const std::vector<float>& left, const std::vector<float>& right) {
  return left.size() == right.size() && std::memcmp(left.data(), right.data(), left.size() * sizeof(float)) == 0;
}

// A vector and its state, stepped in place or from one buffer to another.
class Stepped {
 public:
  Stepped(const UpdateRuleSpec& spec, const std::vector<float>& initial, bool in_place)
      : rule_(std::make_shared<const UpdateRule>(spec, initial.size())),
        in_place_(in_place),
        newest_(initial),
        spare_(initial.size()) {
    for (int index = 0; index < rule_->state_vectors(); ++index) {
      state_.emplace_back(initial.size(), rule_->initial_state_value(index));
    }
    if (rule_->keeps_ema()) {
      ema_ = initial;
    }
  }

  // Cut into ranges of `length` elements. Returns one past the last element that was stepped.
  std::uint64_t step(const std::vector<std::vector<float>>& terms, float divisor, std::size_t length) {
    std::vector<GradientView> views;
    for (const auto& term : terms) {
      views.push_back(GradientView::dense(term.data(), term.size()));
    }
    ParameterVectors vectors;
    vectors.in = newest_.data();
    vectors.out = in_place_ ? newest_.data() : spare_.data();
    for (std::size_t index = 0; index < state_.size(); ++index) {
      vectors.state[index] = state_[index].data();
    }
    if (rule_->keeps_ema()) {
      vectors.ema_in = vectors.ema_out = ema_.data();
    }
    std::uint64_t end = 0;
    for (std::size_t begin = 0; begin < newest_.size() && end == begin; begin += length) {
      const std::uint64_t range_end = std::min(begin + length, newest_.size());
      end = rule_->apply(vectors, {.terms = views, .divisor = divisor}, begin, range_end, updates_).end;
    }
    if (!in_place_) {
      newest_.swap(spare_);
    }
    ++updates_;
    return end;
  }

  // Returns whether all vectors are those of `left` before element `cut`, and those of `right` from there on.
  bool consists_of(const Stepped& left, const Stepped& right, std::size_t cut) const {
    const auto joined = [cut](const std::vector<float>& before, const std::vector<float>& after) {
      std::vector<float> values(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(cut));
      values.insert(values.end(), after.begin() + static_cast<std::ptrdiff_t>(cut), after.end());
      return values;
    };
    bool same = same_bits(newest_, joined(left.newest_, in_place_ ? right.newest_ : right.spare_)) &&
                same_bits(ema_, joined(left.ema_, right.ema_));
    for (std::size_t index = 0; index < state_.size(); ++index) {
      same = same && same_bits(state_[index], joined(left.state_[index], right.state_[index]));
    }
    return same;
  }

  const std::vector<float>& parameters() const { return newest_; }
  const std::vector<float>& ema() const { return ema_; }

 private:
  std::shared_ptr<const UpdateRule> rule_;
  bool in_place_;
  std::vector<float> newest_, spare_, ema_;
  std::vector<std::vector<float>> state_;
  std::uint64_t updates_ = 0;
};

UpdateRuleSpec rule_of(const OptimizerSpec& optimizer) {
  UpdateRuleSpec spec;
  spec.optimizer = optimizer;
  spec.schedule.learning_rate = kRate;
  return spec;
}

constexpr std::size_t kSize = 5003;  // more than a block, and no multiple of any vector's width

TEST(each_optimizer_has_the_bits_of_its_scalar_reference) {
  for (const Case& test : cases()) {
    const auto initial = random_floats(kSize, 1);
    Stepped stepped(rule_of(test.spec), initial, true);
    std::vector<Element> elements;
    for (const float value : initial) {
      elements.push_back({value});
    }
    for (std::uint64_t update = 0; update < 20; ++update) {
      const auto gradient = random_floats(kSize, 100 + update);
      stepped.step({gradient}, 1.0F, kSize);
      for (std::size_t i = 0; i < kSize; ++i) {
        test.reference(elements[i], gradient[i], static_cast<float>(kRate), update);
        if (elements[i].parameter != stepped.parameters()[i]) {
          check::fail(std::string(test.label) + " differs at element " + std::to_string(i), __FILE__, __LINE__);
        }
      }
    }
  }
}

TEST(in_place_out_of_place_and_any_cut_give_the_same_bits) {
  for (const Case& test : cases()) {
    UpdateRuleSpec spec = rule_of(test.spec);
    spec.ema_decay = 0.99;
    spec.clip_value = 0.5;
    const auto initial = random_floats(kSize, 1);
    Stepped in_place(spec, initial, true);
    Stepped out_of_place(spec, initial, false);
    Stepped in_ranges(spec, initial, true);
    for (std::uint64_t update = 0; update < 10; ++update) {
      const std::vector<std::vector<float>> terms = {random_floats(kSize, 2 * update),
                                                     random_floats(kSize, 2 * update + 1)};
      in_place.step(terms, 2.0F, kSize);
      out_of_place.step(terms, 2.0F, kSize);
      in_ranges.step(terms, 2.0F, 777);
    }
    CHECK(same_bits(in_place.parameters(), out_of_place.parameters()));
    CHECK(same_bits(in_place.parameters(), in_ranges.parameters()));
    CHECK(same_bits(in_place.ema(), out_of_place.ema()));
    CHECK(same_bits(in_place.ema(), in_ranges.ema()));
  }
}

// NaN and infinity at every place of a strip, in a whole one and in the short last one.
TEST(an_optimizer_ends_before_the_strip_that_is_not_finite) {
  constexpr std::size_t kFloats = 3 * kStripFloats + 7;
  const auto initial = random_floats(kFloats, 1);
  const auto gradient = random_floats(kFloats, 2);
  for (const Case& test : cases()) {
    UpdateRuleSpec spec = rule_of(test.spec);
    spec.ema_decay = 0.99;
    for (const bool in_place : {false, true}) {
      Stepped whole(spec, initial, in_place);
      CHECK_EQUAL(whole.step({gradient}, 1.0F, kFloats), kFloats);
      for (std::size_t place = kStripFloats; place < kFloats; ++place) {
        const std::size_t end = place / kStripFloats * kStripFloats;
        std::vector<float> bad = gradient;
        bad[place] = place % 3 == 0 ? NAN : place % 3 == 1 ? INFINITY : -INFINITY;
        Stepped stopped(spec, initial, in_place);
        const Stepped fresh = stopped;
        CHECK_EQUAL(stopped.step({bad}, 1.0F, kFloats), end);
        CHECK(stopped.consists_of(whole, fresh, end));
      }
    }
  }
}

TEST(terms_are_summed_in_their_order_and_divided) {
  const auto a = random_floats(kSize, 1), b = random_floats(kSize, 2), c = random_floats(kSize, 3);
  UpdateRuleSpec spec;
  spec.schedule.learning_rate = 1.0;
  Stepped stepped(spec, std::vector<float>(kSize, 0.0F), true);
  stepped.step({a, b, c}, 3.0F, kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    CHECK_EQUAL(stepped.parameters()[i], 0.0F - ((a[i] + b[i]) + c[i]) / 3.0F);
  }
}

TEST(clipping_clamps_the_joined_gradient) {
  UpdateRuleSpec spec;
  spec.schedule.learning_rate = 1.0;
  spec.clip_value = 0.25;
  Stepped stepped(spec, std::vector<float>(3, 0.0F), true);
  stepped.step({{1.0F, -9.0F, 0.5F}, {-0.8F, 0.0F, -0.5F}}, 1.0F, 3);
  CHECK_EQUAL(stepped.parameters()[0], -(1.0F - 0.8F));
  CHECK_EQUAL(stepped.parameters()[1], 0.25F);
  CHECK_EQUAL(stepped.parameters()[2], 0.0F);
}

TEST(groups_have_their_own_rate_and_decay) {
  UpdateRuleSpec spec;
  spec.optimizer.settings["weight_decay"] = 9.0;  // for parameters without groups
  spec.schedule.learning_rate = 0.5;
  spec.groups = {{0, 16, 1.0, 0.0}, {16, 4500, 0.0, 1.0}, {4500, kSize, 2.0, 0.5}};
  Stepped stepped(spec, std::vector<float>(kSize, 1.0F), true);
  stepped.step({std::vector<float>(kSize, 0.25F)}, 1.0F, 1000);
  for (std::size_t i = 0; i < kSize; ++i) {
    CHECK_EQUAL(stepped.parameters()[i], i < 16 ? 1.0F - 0.125F : i < 4500 ? 1.0F : 1.0F - (0.25F + 0.5F));
  }
}

TEST(without_groups_the_optimizers_own_decay_holds) {
  for (const OptimizerSpec& optimizer : {OptimizerSpec{"sgd", {{"weight_decay", 0.5}}}, OptimizerSpec{"adamw", {}}}) {
    Stepped stepped(rule_of(optimizer), std::vector<float>(4, 1.0F), true);
    stepped.step({std::vector<float>(4, 0.0F)}, 1.0F, 4);
    CHECK(stepped.parameters()[0] < 1.0F);
  }
}

TEST(the_ema_starts_at_the_parameters_and_ramps) {
  UpdateRuleSpec spec;
  spec.schedule.learning_rate = 1.0;
  spec.ema_decay = 0.5;
  Stepped stepped(spec, {1.0F}, true);
  stepped.step({{-1.0F}}, 1.0F, 1);  // parameter 2, decay min(0.5, 1/10)
  const float first = 1.0F + static_cast<float>(1.0 - 0.1) * (2.0F - 1.0F);
  CHECK_EQUAL(stepped.ema()[0], first);
  stepped.step({{-1.0F}}, 1.0F, 1);  // parameter 3, decay min(0.5, 2/11)
  CHECK_EQUAL(stepped.ema()[0], first + static_cast<float>(1.0 - 2.0 / 11.0) * (3.0F - first));
  for (int i = 0; i < 20; ++i) {
    stepped.step({{0.0F}}, 1.0F, 1);
  }
  const float before = stepped.ema()[0];
  stepped.step({{0.0F}}, 1.0F, 1);
  CHECK_EQUAL(stepped.ema()[0], before + 0.5F * (3.0F - before));
}

TEST(settings_that_make_no_rule_are_refused) {
  CHECK_THROWS(make_optimizer({"sdg", {}}), Error);
  CHECK_THROWS(make_optimizer({"sgd", {{"momentum", 0.9}}}), Error);
  CHECK_THROWS(make_optimizer({"adam", {{"beta1", 1.0}}}), Error);
  CHECK_THROWS(make_optimizer({"adam", {{"eps", std::nan("")}}}), Error);
  CHECK_THROWS(make_optimizer({"momentum", {{"momentum", -0.1}}}), Error);
  CHECK_THROWS(make_optimizer({"sgd", {{"weight_decay", INFINITY}}}), Error);
  CHECK_THROWS(UpdateRule({}, 0), Error);
  UpdateRuleSpec gap;
  gap.groups = {{0, 4, 1.0, 0.0}, {5, 8, 1.0, 0.0}};
  CHECK_THROWS(UpdateRule(gap, 8), Error);
  UpdateRuleSpec too_short;
  too_short.groups = {{0, 4, 1.0, 0.0}};
  CHECK_THROWS(UpdateRule(too_short, 8), Error);
  CHECK_THROWS(UpdateRule({.clip_value = -1.0}, 8), Error);
  CHECK_THROWS(UpdateRule({.ema_decay = 1.0}, 8), Error);
}

}  // namespace
