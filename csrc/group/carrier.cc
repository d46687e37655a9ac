#include "group/carrier.h"

#include "base/ranks_text.h"

namespace distnet {

Error late(const Patience& patience, const std::vector<std::uint32_t>& awaited) {
  return {ErrorCode::kDeadlineExceeded, patience.operation + " waited for " + ranks_text(awaited) +
                                            " until its deadline; all ranks must call it, in the same order"};
}

bool Breakage::set(const Error& why) {
  const std::lock_guard lock(mutex_);
  if (why_) {
    return false;
  }
  why_ = why;
  set_.store(true, std::memory_order_seq_cst);  // pairs with is_set()
  return true;
}

void Breakage::check() const {
  if (is_set()) {
    const std::lock_guard lock(mutex_);
    if (why_) {
      throw Error(*why_);
    }
  }
}

bool is_same_memory(const ConstPieces& one, const MutablePieces& other) {
  if (one.bytes() != other.bytes()) {
    return false;
  }
  for (std::uint64_t at = 0; at < one.bytes();) {
    const ConstSpan left = one.from(at);
    const MutableSpan right = other.from(at);
    if (left.data() != right.data()) {
      return false;
    }
    at += std::min(left.size(), right.size());
  }
  return true;
}

bool overlap(const ConstPieces& one, const MutablePieces& other) {
  const auto shares = [](ConstSpan left, ConstSpan right) {
    const std::less<const std::byte*> before;
    return before(left.data(), right.data() + right.size()) && before(right.data(), left.data() + left.size());
  };
  for (const ConstSpan left : one.spans()) {
    for (const MutableSpan right : other.spans()) {
      if (shares(left, right)) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace distnet
