#include "store/lockfree_store.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/threads.h"
#include "kernels/kernels.h"

namespace distnet {
namespace {

constexpr auto kOwnersTurn = std::chrono::microseconds{20};  // in which a chunk's owner does something with it

// The chunks that an update found owned, until it comes back to them.
struct BusyChunks {
  static constexpr std::size_t kCapacity = 32;
  std::size_t chunks[kCapacity];
  std::size_t count = 0;
};

// Calls `visit` with the index of each bit that is set.
template <typename Visit>
void for_each_bit(std::uint64_t bits, const Visit& visit) {
  for (; bits != 0; bits &= bits - 1) {
    visit(static_cast<std::uint32_t>(std::countr_zero(bits)));
  }
}

}  // namespace

static_assert(kMaxUpdatesInFlight <= 63, "bit 63 of a chunk's word says that it is owned");

LockFreeStore::LockFreeStore(const UpdateRuleSpec& rule, std::span<const float> initial, Memory& memory)
    : Store(initial.size()),
      memory_(memory),
      rule_(rule, initial.size()),
      layout_(initial.size(), rule_.keeps_ema()),
      state_(rule_, initial.size(), memory),
      live_(layout_.make_buffer(memory)),
      chunk_count_((initial.size() + kStoreChunkFloats - 1) / kStoreChunkFloats),
      chunk_memory_(memory.allocate(chunk_count_ * sizeof(Chunk))),
      chunks_(chunk_memory_.as<Chunk>()),
      copies_(memory.allocate(kCopyBuffers * kStoreChunkFloats * sizeof(float))),
      copy_numbers_(memory.allocate(kMaxUpdatesInFlight * chunk_count_)) {
  layout_.fill(live_, initial);
  vectors_.in = vectors_.out = layout_.parameters(live_);
  vectors_.ema_in = vectors_.ema_out = layout_.ema(live_);
  state_.attach(vectors_);
  std::uninitialized_value_construct_n(chunks_, chunk_count_);
  for (std::size_t ticket = 0; ticket < tickets_.size(); ++ticket) {
    tickets_[ticket].copies = copy_numbers_.as<std::uint8_t>(ticket * chunk_count_);
  }
}

std::uint64_t LockFreeStore::chunk_end(std::size_t chunk) const {
  return std::min<std::uint64_t>(chunk_begin(chunk + 1), layout_.size);
}

float* LockFreeStore::copy_buffer(std::uint32_t index) const { return copies_.as<float>() + index * kStoreChunkFloats; }

// Starts updates at chunks far from each other, so that they seldom meet and never follow each other in a convoy.
std::size_t LockFreeStore::first_chunk() {
  const std::uint64_t visit = visits_.fetch_add(1, std::memory_order_relaxed);  // a count: it orders nothing
  const std::uint64_t spread = (visit * 0x9E3779B97F4A7C15U) >> 32;             // multiples of the golden ratio
  return static_cast<std::size_t>((spread * chunk_count_) >> 32);
}

bool LockFreeStore::try_own(std::size_t chunk) {
  std::atomic<std::uint64_t>& word = chunks_[chunk].word;
  std::uint64_t expected = 0;
  // The plain load first keeps the line shared while another thread works on the chunk. Acquire pairs with the release
  // in serve_and_give_up(), so the former owner's writes are visible here.
  return word.load(std::memory_order_relaxed) == 0 &&
         word.compare_exchange_strong(expected, kOwned, std::memory_order_acquire, std::memory_order_relaxed);
}

// Applies the gradient up to where it is not finite, which stops the update in other chunks, too.
void LockFreeStore::apply_to_owned(std::size_t chunk, const Share& share) {
  cut_.before_update(chunk);
  const std::uint64_t update = chunks_[chunk].updates++;
  // Relaxed: who sees it late applies what is good. complete() orders it for the thread that finishes the update.
  if (!share.stopped.load(std::memory_order_relaxed) &&
      !rule_.apply(vectors_, share.gradient, chunk_begin(chunk), chunk_end(chunk), update, share.rate).whole()) {
    share.stopped.store(true, std::memory_order_relaxed);
  }
}

void LockFreeStore::apply_left(std::size_t chunk, std::uint32_t index) {
  const Ticket& ticket = tickets_[index];
  if (ticket.update != &ticket.standalone) {
    apply_to_owned(chunk, {ticket.update->gradient, ticket.update->rate, ticket.update->stopped});
    return;
  }
  const std::uint32_t copied = ticket.copies[chunk];
  if (copied == kNoCopy) {
    ++chunks_[chunk].updates;
    return;
  }
  const std::uint64_t begin = chunk_begin(chunk);
  GradientView term = GradientView::dense(copy_buffer(copied), chunk_end(chunk) - begin);
  term.meaning = ticket.meaning;
  std::atomic<bool> stopped{false};  // it was finite when it was left: what comes before a bad chunk stays
  const JoinedGradient left{.terms = {&term, 1}, .first = begin, .checked = true};
  apply_to_owned(chunk, {left, ticket.standalone.rate, stopped});
  free_copies_.give_back(copied);
}

// Called by the owner. Bits stay in the word until the chunk is given up, so that none of their tickets can be used
// anew.
void LockFreeStore::serve_and_give_up(std::size_t chunk) {
  std::atomic<std::uint64_t>& word = chunks_[chunk].word;
  std::uint64_t served = 0;
  std::uint64_t seen = kOwned;
  // Release pairs with the acquire of the next owner, in try_own() or leave(). Acquire on failure pairs with the
  // release in leave(): the ticket, the gradient and the copy behind each new bit are complete.
  while (!word.compare_exchange_strong(seen, 0, std::memory_order_release, std::memory_order_acquire)) {
    for_each_bit(seen & ~kOwned & ~served, [&](std::uint32_t ticket) { apply_left(chunk, ticket); });
    served = seen & ~kOwned;
  }
  for_each_bit(served, [&](std::uint32_t ticket) { complete(ticket, 1); });
}

// Leaves the chunk's share of the update with the chunk's owner, who may turn out to be this thread.
void LockFreeStore::leave(std::size_t chunk, std::uint32_t ticket) {
  const std::uint64_t bit = std::uint64_t{1} << ticket;
  // Release pairs with the owner's acquire in serve_and_give_up(), acquire with the former owner's release there.
  const std::uint64_t before = chunks_[chunk].word.fetch_or(kOwned | bit, std::memory_order_acq_rel);
  if ((before & kOwned) == 0) {
    serve_and_give_up(chunk);
  }
}

// Counts off chunks of an update. The thread that counts off the last one finishes it, and nobody touches it
// afterwards.
void LockFreeStore::complete(std::uint32_t index, std::uint64_t chunks) {
  Ticket& ticket = tickets_[index];
  Update& update = *ticket.update;
  // Each release pairs with the acquire of the last thread, so all chunks' writes happen before the new version.
  if (update.chunks_left.fetch_sub(chunks, std::memory_order_acq_rel) != chunks) {
    return;
  }
  const bool standalone = &update == &ticket.standalone;
  const bool refused = update.stopped.load(std::memory_order_relaxed);
  // Release pairs with the acquire in version(): a thread that reads this number sees this update.
  const std::uint64_t version_before = refused ? 0 : version_.fetch_add(1, std::memory_order_release);
  free_tickets_.give_back(index);
  if (standalone) {
    return;
  }
  if (refused) {
    update.finish_refused(true);
  } else {
    update.finish(version_before);
  }
}

// Applies the gradient to every chunk that is not owned. `revisit` handles the others and returns whether this thread
// applied the gradient there after all. Returns how many chunks this thread applied and has yet to count off.
template <typename Revisit>
std::uint64_t LockFreeStore::visit_all(const Share& share, const Revisit& revisit) {
  std::uint64_t applied = 0;
  const auto apply_if_unowned = [&](std::size_t chunk) {
    if (!try_own(chunk)) {
      return false;
    }
    apply_to_owned(chunk, share);
    serve_and_give_up(chunk);
    ++applied;
    return true;
  };
  BusyChunks busy;
  const auto come_back = [&] {
    for (std::size_t i = 0; i < busy.count; ++i) {
      if (!apply_if_unowned(busy.chunks[i])) {
        applied += revisit(busy.chunks[i]) ? 1 : 0;
      }
    }
    busy.count = 0;
  };
  const std::size_t first = first_chunk();
  for (std::size_t i = 0; i < chunk_count_; ++i) {
    const std::size_t chunk = first + i < chunk_count_ ? first + i : first + i - chunk_count_;
    if (apply_if_unowned(chunk)) {
      continue;
    }
    if (busy.count == BusyChunks::kCapacity) {
      come_back();
    }
    busy.chunks[busy.count++] = chunk;
  }
  come_back();
  return applied;
}

void LockFreeStore::submit(Update& update) {
  const std::uint32_t ticket = free_tickets_.take();
  tickets_[ticket].update = &update;
  update.ticket = ticket;
  update.rate = rate_of(update.gradient);
  update.chunks_left.store(chunk_count_, std::memory_order_relaxed);  // published by the words, in leave()
  // The update can finish, and be destroyed, as soon as its last chunk is left or counted off. Nothing below touches it
  // then.
  const std::uint64_t applied = visit_all({update.gradient, update.rate, update.stopped}, [&](std::size_t chunk) {
    leave(chunk, ticket);
    return false;
  });
  if (applied != 0) {
    complete(ticket, applied);
  }
}

void LockFreeStore::leave_copy(std::size_t chunk, std::uint32_t ticket, std::uint32_t copy_index, const float* gradient,
                               std::atomic<bool>& stopped) {
  const std::uint64_t begin = chunk_begin(chunk);
  std::uint32_t left = copy_index;
  if (stopped.load(std::memory_order_relaxed) ||
      !copy_finite(copy_buffer(copy_index), gradient + begin, chunk_end(chunk) - begin)) {
    stopped.store(true, std::memory_order_relaxed);                              // read by this thread
    tickets_[ticket].standalone.stopped.store(true, std::memory_order_relaxed);  // published by leave()
    free_copies_.give_back(copy_index);
    left = kNoCopy;
  }
  tickets_[ticket].copies[chunk] = static_cast<std::uint8_t>(left);
  leave(chunk, ticket);
}

void LockFreeStore::put_back(const StoreState& state) {
  if (!state.ema.empty() && vectors_.ema_out != nullptr) {
    copy(vectors_.ema_out, state.ema.data(), layout_.size);
  }
  state_.put_back(state.state_vectors);
  for (std::size_t chunk = 0; chunk < chunk_count_; ++chunk) {
    chunks_[chunk].updates = state.version;
  }
  version_.store(state.version, std::memory_order_release);  // pairs with version()
}

void LockFreeStore::reserve_cut() {
  std::array<const float*, kMaxCutVectors> live{vectors_.out};
  std::size_t count = 1;
  if (vectors_.ema_out != nullptr) {
    live[count++] = vectors_.ema_out;
  }
  for (int index = 0; index < rule_.state_vectors(); ++index) {
    live[count++] = state_.vector(index);
  }
  cut_.reserve(memory_, std::span(live).first(count));
}

std::uint64_t LockFreeStore::begin_cut() {
  cut_.begin();
  return chunks_[0].updates;  // as all chunks'; with those that were refused, which version() does not count
}

// Ends: whoever owns the chunk instead of this thread is going to copy it, or is about to give it up.
void LockFreeStore::read_cut(std::size_t chunk, float* out) {
  while (!cut_.read_copy(chunk, out)) {
    if (!try_own(chunk)) {
      sleep_for(kOwnersTurn);
      continue;
    }
    const bool read = cut_.read_live(chunk, out);
    serve_and_give_up(chunk);
    if (read) {
      return;
    }
  }
}

void LockFreeStore::apply_alone(const GradientView& term) {
  check_size(term.elements, term.is_change() ? "a change" : "a gradient");
  const JoinedGradient joined{.terms = {&term, 1}};
  std::optional<std::uint32_t> ticket;  // taken when the first chunk has to be left
  std::atomic<bool> stopped{false};
  const Share share{joined, set_rate(), stopped};
  const std::uint64_t applied = visit_all(share, [&](std::size_t chunk) {
    if (!ticket) {
      ticket = free_tickets_.take();
      tickets_[*ticket].update = &tickets_[*ticket].standalone;
      tickets_[*ticket].meaning = term.meaning;
      tickets_[*ticket].standalone.reset();
      tickets_[*ticket].standalone.rate = share.rate;
      tickets_[*ticket].standalone.chunks_left.store(chunk_count_, std::memory_order_relaxed);  // published in leave()
    }
    while (true) {
      if (const auto buffer = free_copies_.try_take()) {
        leave_copy(chunk, *ticket, *buffer, term.floats(), stopped);
        return false;
      }
      free_copies_.wait_for_free();
      if (!try_own(chunk)) {
        continue;
      }
      apply_to_owned(chunk, share);
      serve_and_give_up(chunk);
      return true;
    }
  });
  const bool refused = stopped.load(std::memory_order_relaxed);
  if (!ticket && !refused) {
    version_.fetch_add(1, std::memory_order_release);  // pairs with version()
  } else if (ticket && applied != 0) {
    if (refused) {
      tickets_[*ticket].standalone.stopped.store(true, std::memory_order_relaxed);  // published by complete()
    }
    complete(*ticket, applied);
  }
  if (refused) {
    throw_refused("what came before that was applied, because this store updates in place");
  }
}

Pin LockFreeStore::pin() { return Pin(*this, 0, version(), vectors_.out, vectors_.ema_out); }

std::uint64_t LockFreeStore::table_bytes() const {
  const auto pages = [](const Region& region) { return (region.bytes() + kPageBytes - 1) / kPageBytes * kPageBytes; };
  return pages(chunk_memory_) + pages(copies_) + pages(copy_numbers_);
}

const Region& LockFreeStore::buffer(std::uint32_t index) const {
  if (index != 0) {
    throw Error(ErrorCode::kProtocol, "there is no parameter buffer " + std::to_string(index));
  }
  return live_;
}

}  // namespace distnet
