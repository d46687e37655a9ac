#include "store/mutex_store.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "kernels/kernels.h"

namespace distnet {
namespace {

// How long a draft waits in all for its sender once other updates wait.
constexpr std::chrono::microseconds kPatience{200};
// How long it waits for one piece, spinning, also where nobody else waits. A sender that takes longer has stalled: the
// rest is waited for asleep, without a draft.
constexpr std::chrono::microseconds kLongestPause{2000};
// The newest version, the one that is being made, one that the server itself reads, and one that a cut holds.
constexpr std::uint64_t kOwnBuffers = 4;

}  // namespace

MutexStore::MutexStore(const UpdateRuleSpec& rule, std::span<const float> initial, Memory& memory)
    : Store(initial.size()),
      memory_(memory),
      rule_(rule, initial.size()),
      layout_(initial.size(), rule_.keeps_ema()),
      state_(rule_, initial.size(), memory) {
  keep_spare_files();
  buffers_.push_back({make_buffer()});
  layout_.fill(buffers_.front().memory, initial);
}

void MutexStore::submit(Update& update) {
  if (may_begin(update)) {
    const std::unique_lock apply_lock = lock_to_apply();
    const Draft draft = draft_version(update);
    if (write_all(draft, update)) {
      publish(draft, update);
      return;
    }
  }
  update.finish_refused(false);
}

// Looks at the whole gradient where the rule has state, which cannot be undone.
bool MutexStore::may_begin(Update& update) const {
  JoinedGradient& gradient = update.gradient;
  if (applies_arriving() || gradient.checked) {
    return true;
  }
  for (std::size_t index = 0; index < gradient.terms.size(); ++index) {
    if (!is_finite(gradient.terms[index], 0, layout_.size)) {
      update.spoilt_term = index;
      return false;
    }
  }
  gradient.checked = true;
  return true;
}

bool MutexStore::applies_arriving() const { return rule_.state_vectors() == 0; }

Arrival::State MutexStore::submit_arriving(Update& update, Arrival& arrival) {
  using State = Arrival::State;
  State state = arrival.wait(std::min(kPieceFloats, layout_.size), kAnyPatience);
  if (state == State::kHere) {
    const std::unique_lock apply_lock = lock_to_apply();
    const Draft draft = draft_version(update);
    state = write_arriving(draft, update, arrival);
    if (state == State::kHere && update.try_arrived()) {
      publish(draft, update);
      return state;
    }
    state = state == State::kHere ? State::kLate : state;
  }
  update.redrafted = true;
  return state == State::kLate ? Store::submit_arriving(update, arrival) : state;
}

static_assert(kPieceFloats == kStoreChunkFloats, "an update of a piece changes one chunk of the optimizer's state");

// Returns kLate where the draft is to be dropped and the rest of the gradient waited for: it waited for its sender while
// other updates waited, the sender has stalled, or a piece is not finite.
Arrival::State MutexStore::write_arriving(const Draft& draft, Update& update, Arrival& arrival) {
  using State = Arrival::State;
  const auto others_wait = [this] { return waiting_.load(std::memory_order_relaxed) != 0; };
  Clock::duration waited{};
  for (std::uint64_t begin = 0; begin < layout_.size; begin += kPieceFloats) {
    State state = State::kLate;
    const Clock::duration waited_before = waited;
    while (state == State::kLate) {
      const auto before = now();
      state = arrival.wait(std::min(begin + kPieceFloats, layout_.size), kPatience);
      waited += now() - before;
      if (waited > kPatience && others_wait()) {
        return state == State::kHere ? State::kLate : state;
      }
      if (state == State::kLate && waited - waited_before > kLongestPause) {
        return state;
      }
    }
    if (state != State::kHere) {
      return state;
    }
    if (!write_piece(draft, update, begin)) {
      return State::kLate;
    }
  }
  return State::kHere;
}

std::unique_lock<Mutex> MutexStore::lock_to_apply() {
  waiting_.fetch_add(1, std::memory_order_relaxed);
  std::unique_lock lock(apply_mutex_);
  waiting_.fetch_sub(1, std::memory_order_relaxed);
  return lock;
}

// Called under apply_mutex_, without which buffers_ does not grow and newest_ does not change.
MutexStore::Draft MutexStore::draft_version(const Update& update) {
  Draft draft;
  draft.version_before = version_.load(std::memory_order_relaxed);  // written under apply_mutex_ only
  draft.rate = rate_of(update.gradient);
  draft.buffer = free_buffer();
  const Region& from = buffers_[newest_].memory;
  const Region& to = buffers_[draft.buffer].memory;
  ParameterVectors& vectors = draft.vectors;
  vectors.in = layout_.parameters(from);
  vectors.out = layout_.parameters(to);
  vectors.ema_in = layout_.ema(from);
  vectors.ema_out = layout_.ema(to);
  state_.attach(vectors);
  return draft;
}

// Writes one piece of a draft, from element `begin`. Returns false where the gradient is not finite there.
bool MutexStore::write_piece(const Draft& draft, Update& update, std::uint64_t begin) {
  cut_.before_update(begin / kPieceFloats);
  const std::uint64_t end = std::min(begin + kPieceFloats, layout_.size);
  const Applied applied = rule_.apply(draft.vectors, update.gradient, begin, end, draft.version_before, draft.rate);
  if (applied.spoilt_term) {
    update.spoilt_term = *applied.spoilt_term;
    return false;
  }
  if (update.tells_drafts && !update.redrafted) {
    update.on_drafted(draft.buffer, end);
  }
  return true;
}

bool MutexStore::write_all(const Draft& draft, Update& update) {
  for (std::uint64_t begin = 0; begin < layout_.size; begin += kPieceFloats) {
    if (!write_piece(draft, update, begin)) {
      return false;
    }
  }
  return true;
}

void MutexStore::publish(const Draft& draft, Update& update) {
  {
    const std::lock_guard pins_lock(pins_mutex_);
    newest_ = draft.buffer;
    if (update.wants_pin) {
      ++buffers_[newest_].pins;
      update.pin = Pin(*this, newest_, draft.version_before + 1, draft.vectors.out, draft.vectors.ema_out);
    }
    // Pairs with version(): a thread that sees this number finds at least this version when it pins.
    version_.store(draft.version_before + 1, std::memory_order_release);
  }
  update.finish(draft.version_before);
}

// Called under apply_mutex_, so a buffer found free stays free: only the newest can be pinned anew.
std::uint32_t MutexStore::free_buffer() {
  {
    const std::lock_guard pins_lock(pins_mutex_);
    for (std::uint32_t index = 0; index < buffers_.size(); ++index) {
      if (index != newest_ && buffers_[index].pins == 0) {
        return index;
      }
    }
  }
  Region memory = make_buffer();
  const std::lock_guard pins_lock(pins_mutex_);
  buffers_.push_back({std::move(memory)});
  return static_cast<std::uint32_t>(buffers_.size() - 1);
}

void MutexStore::set_learning_rate(double learning_rate) {
  const std::unique_lock apply_lock = lock_to_apply();
  Store::set_learning_rate(learning_rate);
}

void MutexStore::prepare() {
  const std::unique_lock apply_lock = lock_to_apply();
  static_cast<void>(free_buffer());
}

Region MutexStore::make_buffer() {
  int file = -1;
  {
    const std::lock_guard lock(spare_mutex_);
    file = spare_files_.take();
    ++made_;
  }
  try {
    return layout_.make_buffer(memory_, file);
  } catch (...) {  // no memory; the descriptor went with it
    {
      const std::lock_guard lock(spare_mutex_);
      --made_;
    }
    expect_fewer_pins(0);
    throw;
  }
}

// Called under spare_mutex_, or before anybody else knows of the store.
void MutexStore::keep_spare_files() {
  const std::uint64_t needed = kOwnBuffers + expected_pins_;
  spare_files_.keep(needed > made_ ? needed - made_ : 0);
}

void MutexStore::expect_pins(std::uint32_t more) {
  const std::lock_guard lock(spare_mutex_);
  expected_pins_ += more;
  try {
    keep_spare_files();
  } catch (...) {
    expected_pins_ -= more;
    throw;
  }
}

void MutexStore::expect_fewer_pins(std::uint32_t fewer) noexcept {
  const std::lock_guard lock(spare_mutex_);
  expected_pins_ -= fewer;
  try {
    keep_spare_files();
  } catch (const std::exception&) {
    // One that is lacking could not be made again: the next client is refused for that.
  }
}

Pin MutexStore::pin() {
  const std::lock_guard pins_lock(pins_mutex_);
  Buffer& newest = buffers_[newest_];
  ++newest.pins;
  return Pin(*this, newest_, version_.load(std::memory_order_relaxed), layout_.parameters(newest.memory),
             layout_.ema(newest.memory));
}

void MutexStore::unpin(std::uint32_t buffer) noexcept {
  const std::lock_guard pins_lock(pins_mutex_);
  DISTNET_INVARIANT(buffer < buffers_.size() && buffers_[buffer].pins > 0);
  --buffers_[buffer].pins;
}

const Region& MutexStore::buffer(std::uint32_t index) const {
  const std::lock_guard pins_lock(pins_mutex_);
  if (index >= buffers_.size()) {
    throw Error(ErrorCode::kProtocol, "there is no parameter buffer " + std::to_string(index));
  }
  return buffers_[index].memory;
}

void MutexStore::put_back(const StoreState& state) {
  if (!state.ema.empty() && layout_.ema_offset_bytes != 0) {
    copy(layout_.ema(buffers_.front().memory), state.ema.data(), layout_.size);
  }
  state_.put_back(state.state_vectors);
  version_.store(state.version, std::memory_order_release);  // pairs with version()
}

void MutexStore::reserve_cut() {
  std::array<const float*, kMaxStateVectors> live{};
  const auto count = static_cast<std::size_t>(rule_.state_vectors());
  for (std::size_t index = 0; index < count; ++index) {
    live[index] = state_.vector(static_cast<int>(index));
  }
  cut_.reserve(memory_, std::span(live).first(count));
}

std::uint64_t MutexStore::begin_cut() {
  const std::unique_lock apply_lock = lock_to_apply();
  cut_pin_ = pin();
  cut_.begin();
  return cut_pin_.version();
}

// An update after the cut copies the whole state, so a reader waits for one update at most.
void MutexStore::read_cut(std::size_t chunk, float* out) {
  const std::uint64_t begin = Cut::begin_of(chunk);
  const std::uint64_t count = cut_.floats_of(chunk);
  copy(out, cut_pin_.parameters() + begin, count);
  out += count;
  if (layout_.ema_offset_bytes != 0) {
    copy(out, cut_pin_.ema() + begin, count);
    out += count;
  }
  if (rule_.state_vectors() == 0 || cut_.read_copy(chunk, out)) {
    return;
  }
  const std::unique_lock apply_lock = lock_to_apply();
  if (!cut_.read_live(chunk, out)) {
    cut_.read_copy(chunk, out);
  }
}

void MutexStore::end_cut() noexcept {
  cut_.end();
  cut_pin_.release();
}

void MutexStore::apply_alone(const GradientView& term) {
  check_size(term.elements, term.is_change() ? "a change" : "a gradient");
  Update update;
  update.gradient.terms = {&term, 1};
  submit(update);
  if (update.refused()) {
    throw_refused("nothing of it was applied");
  }
}

}  // namespace distnet
