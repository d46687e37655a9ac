#include "transport/connector.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/waiting.h"

namespace distnet {
namespace {

constexpr double kRetryPauseSeconds = 0.05;  // before a full queue of a Unix listener is tried again

// The families in turns, each in its own order.
std::vector<SocketAddress> interleaved(std::vector<SocketAddress> addresses) {
  std::vector<SocketAddress> ordered;
  while (!addresses.empty()) {
    const auto other = [&](const SocketAddress& one) { return ordered.empty() || one.family != ordered.back().family; };
    const auto found = std::ranges::find_if(addresses, other);
    const auto next = found == addresses.end() ? addresses.begin() : found;
    ordered.push_back(*next);
    addresses.erase(next);
  }
  return ordered;
}

}  // namespace

Connector::Connector(std::string where, std::vector<SocketAddress> candidates)
    : where_(std::move(where)), candidates_(interleaved(std::move(candidates))) {}

Stream Connector::connect(const Deadline& deadline, const Interrupt& interrupt) {
  Deadline next_start = Deadline::after(0.0);
  while (true) {
    if (next_ < candidates_.size() && (attempts_.empty() || next_start.expired())) {
      next_start = Deadline::after(kHeadStartSeconds);
      if (Stream stream = start_next()) {
        return stream;
      }
      continue;  // it may have failed at once: then the next one's turn has come
    }
    if (attempts_.empty()) {
      throw Error(ErrorCode::kConnect,
                  "no server at " + where_ + " (" + why_ + "); start it first, or check the address it printed");
    }
    const bool more = next_ < candidates_.size();
    const Deadline until = more && next_start.at() < deadline.at() ? next_start : deadline;
    if (Stream stream = take_answered(until)) {
      return stream;
    }
    if (deadline.expired() && !attempts_.empty()) {
      const bool full = std::ranges::none_of(attempts_, &Attempt::in_progress);
      throw Error(ErrorCode::kDeadlineExceeded,
                  full ? "too many wait at " + where_ + "; is its server stopped?"
                       : "no answer from " + where_ + "; is the host up, and the port open?");
    }
    if (interrupt) {
      interrupt();
    }
  }
}

// Returns the stream where the address answers at once.
Stream Connector::start_next() {
  SocketAddress& candidate = candidates_[next_];
  Attempt attempt;
  attempt.candidate = next_++;
  attempt.fd =
      FileDescriptor::open([&] { return ::socket(candidate.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); });
  if (!attempt.fd) {
    if (is_descriptor_shortage(errno)) {
      throw Error(ErrorCode::kConnect, no_descriptor_left("a connection to " + where_));
    }
    why_ = std::strerror(errno);  // the system may lack the family
    return {};
  }
  tune_socket(attempt.fd.get(), candidate);
  return try_again(attempt);
}

Stream Connector::try_again(Attempt& attempt) {
  SocketAddress& candidate = candidates_[attempt.candidate];
  if (::connect(attempt.fd.get(), candidate.get(), candidate.bytes) == 0) {
    return Stream(std::move(attempt.fd));
  }
  if (errno == EINPROGRESS || errno == EAGAIN) {  // a Unix listener with a full queue answers EAGAIN at once
    attempt.in_progress = errno == EINPROGRESS;
    attempts_.push_back(std::move(attempt));
  } else {
    why_ = std::strerror(errno);
  }
  return {};
}

// Waits for one of the attempts to get further, at most until the deadline. Those that failed are forgotten.
Stream Connector::take_answered(const Deadline& until) {
  std::vector<pollfd> polled;
  bool retry = false;
  for (const Attempt& attempt : attempts_) {
    polled.push_back({attempt.in_progress ? attempt.fd.get() : -1, POLLOUT, 0});
    retry = retry || !attempt.in_progress;
  }
  const Deadline next_look =
      Deadline::after(retry ? kRetryPauseSeconds : std::chrono::duration<double>(kInterruptInterval).count());
  poll_until(polled, next_look.at() < until.at() ? next_look : until);
  std::vector<Attempt> attempts = std::exchange(attempts_, {});
  for (std::size_t i = 0; i < attempts.size(); ++i) {
    Attempt& attempt = attempts[i];
    if (!attempt.in_progress) {
      if (Stream stream = try_again(attempt)) {
        return stream;
      }
    } else if (polled[i].revents == 0) {
      attempts_.push_back(std::move(attempt));
    } else {
      int failure = 0;
      socklen_t bytes = sizeof failure;
      getsockopt(attempt.fd.get(), SOL_SOCKET, SO_ERROR, &failure, &bytes);
      if (failure == 0) {
        return Stream(std::move(attempt.fd));
      }
      why_ = std::strerror(failure);
    }
  }
  return {};
}

}  // namespace distnet
