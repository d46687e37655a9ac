#include "client/link.h"

#include <algorithm>
#include <cstring>

#include <poll.h>

#include "base/error.h"
#include "transport/registry.h"

namespace distnet {
namespace {

constexpr milliseconds kExplanation{500};  // both connections end at about the same time

}  // namespace

Link::Link(const Options& options, const Interrupt& interrupt)
    : deadline_s_(options.hello.deadline_s),
      where_(options.endpoint.text()),
      last_heard_(Clock::now().time_since_epoch().count()) {
  open(options, Deadline::after(deadline_s_), interrupt);
  last_heard_ = Clock::now().time_since_epoch().count();  // the handshake may have waited for parameters
  watcher_ = std::thread([this] { watch(); });
}

Link::~Link() {
  abandon();
  if (watcher_.joinable()) {
    watcher_.join();
  }
}

ProbeReply Link::probe(const Endpoint& endpoint, const Deadline& deadline, const Interrupt& interrupt) {
  ControlConnection control(Socket::connect(endpoint, deadline, interrupt));
  control.send(ControlKind::kProbe);
  const ControlMessage message = control.receive(deadline, interrupt);
  if (message.kind != ControlKind::kProbeReply) {
    throw Error(ErrorCode::kProtocol, endpoint.text() + " does not answer a probe");
  }
  return ProbeReply::decode(message.payload);
}

void Link::open(const Options& options, const Deadline& deadline, const Interrupt& interrupt) {
  if (options.endpoint.transport == TransportKind::kShm) {
    if (options.transport == TransportChoice::kTcp) {
      throw Error(ErrorCode::kConfig, where_ + " has no TCP; start the server at tcp://host:port");
    }
    control_ = std::make_unique<ControlConnection>(Socket::connect(options.endpoint, deadline, interrupt));
    greet(options, TransportKind::kShm, deadline, interrupt);
    return;
  }
  if (options.transport != TransportChoice::kTcp) {
    const ProbeReply reply = probe(options.endpoint, deadline, interrupt);
    if (try_local(options, reply.local_name, reply.nonce, deadline, interrupt)) {
      return;
    }
    if (options.transport == TransportChoice::kShm) {
      throw Error(ErrorCode::kConnect,
                  "the server at " + where_ + " is not on this host; use transport='tcp' or 'auto'");
    }
  }
  control_ = std::make_unique<ControlConnection>(Socket::connect(options.endpoint, deadline, interrupt));
  greet(options, TransportKind::kTcp, deadline, interrupt);
}

// Whether the server behind `local_name` on this host is the one that told us `nonce` over TCP. It proves it by the
// nonce in the memory it passes.
bool Link::try_local(const Options& options, const std::string& local_name, const std::uint64_t* nonce,
                     const Deadline& deadline, const Interrupt& interrupt) {
  try {
    control_ = std::make_unique<ControlConnection>(
        Socket::connect(parse_endpoint("shm://" + local_name), deadline, interrupt));
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kConnect || error.code() == ErrorCode::kConfig) {
      return false;  // another host, or another network namespace
    }
    throw;
  }
  try {
    const ProbeReply here = probe(parse_endpoint("shm://" + local_name), deadline, interrupt);
    if (here.nonce[0] != nonce[0] || here.nonce[1] != nonce[1]) {
      return false;
    }
  } catch (const Error&) {
    return false;
  }
  greet(options, TransportKind::kShm, deadline, interrupt);
  return true;
}

void Link::greet(const Options& options, TransportKind transport, const Deadline& deadline,
                 const Interrupt& interrupt) {
  Hello hello = options.hello;
  hello.transport = transport;
  hello.brings_parameters = options.initial.has_value();
  control_->send(ControlKind::kHello, hello.encode());
  ControlMessage message = control_->receive(deadline, interrupt, kMaxManifestBytes);
  if (message.kind == ControlKind::kNeedParameters && options.initial) {
    send_initial(*options.initial, deadline, interrupt);
    message = control_->receive(deadline, interrupt, kMaxManifestBytes);
  }
  if (message.kind != ControlKind::kWelcome) {
    throw Error(ErrorCode::kProtocol, "the server at " + where_ + " did not answer the hello with a welcome");
  }
  welcome_ = Welcome::decode(message.payload);
  const ChannelShape shape = shape_of(welcome_, hello.role, transport);
  if (transport == TransportKind::kShm) {
    channel_ = join_local_channel(shape, options.tuning, std::move(message.fds),
                                  [this](std::uint32_t index) { return map_buffer(index); });
  } else {
    Socket data = Socket::connect(options.endpoint, deadline, interrupt);
    ControlConnection attaching(std::move(data));
    attaching.send(ControlKind::kAttach, Attach{welcome_.session, welcome_.secret}.encode());
    channel_ = join_remote_channel(shape, options.tuning, std::move(attaching.socket()));
  }
  if (control_->receive(deadline, interrupt).kind != ControlKind::kAttached) {
    throw Error(ErrorCode::kProtocol, "the server at " + where_ + " did not confirm the channel");
  }
}

void Link::send_initial(const InitialParameters& initial, const Deadline& deadline, const Interrupt& interrupt) {
  std::vector<float> values(initial.range.size());
  for (std::size_t i = 0; i < initial.manifest.tensors.size(); ++i) {
    const Tensor& tensor = initial.manifest.tensors[i];
    const std::uint64_t begin = std::max(tensor.offset, initial.range.begin);
    const std::uint64_t end = std::min(tensor.offset + tensor.count, initial.range.end);
    if (begin < end) {
      std::copy_n(initial.tensors[i] + (begin - tensor.offset), end - begin,
                  values.data() + (begin - initial.range.begin));
    }
  }
  control_->send(ControlKind::kInitial, Initial{initial.manifest, initial.range}.encode());
  control_->socket().send_all(std::as_bytes(std::span(values)), &deadline, interrupt);
}

Region Link::map_buffer(std::uint32_t index) {
  Writer writer;
  writer.number(index);
  const std::vector<std::byte> payload = writer.take();
  ControlMessage answer = ask(ControlKind::kBuffer, payload, ControlKind::kBufferReply, {});
  Reader reader(answer.payload);
  if (answer.fds.size() != 1 || reader.number<std::uint32_t>() != index) {
    throw Error(ErrorCode::kProtocol, "the server did not pass parameter buffer " + std::to_string(index));
  }
  return Region::map(answer.fds[0].release(), welcome_.buffer_bytes, false);
}

ControlMessage Link::ask(ControlKind kind, std::span<const std::byte> payload, ControlKind answer,
                         const Interrupt& interrupt) {
  std::unique_lock lock(mutex_);
  answers_.erase(answer);  // to a question that was interrupted
  lock.unlock();
  control_->send(kind, payload);
  lock.lock();
  while (!answers_.contains(answer)) {
    answered_.wait_for(lock, kWaitSlice);
    if (!answers_.contains(answer)) {
      lock.unlock();
      check_alive();
      if (interrupt) {
        interrupt();
      }
      lock.lock();
    }
  }
  ControlMessage message = std::move(answers_.at(answer));
  answers_.erase(answer);
  return message;
}

std::string Link::stats(const Interrupt& interrupt) {
  const ControlMessage message = ask(ControlKind::kStats, {}, ControlKind::kStatsReply, interrupt);
  Reader reader(message.payload);
  return reader.text();
}

std::vector<float> Link::optimizer_state(std::uint32_t slot, const Interrupt& interrupt) {
  Writer writer;
  writer.number(slot);
  const std::vector<std::byte> payload = writer.take();
  const ControlMessage message = ask(ControlKind::kState, payload, ControlKind::kStateReply, interrupt);
  Reader reader(message.payload);
  const auto slots = reader.number<std::uint32_t>();
  const std::uint64_t expected = slot < slots ? welcome_.range.size() : 0;
  if (reader.left() != expected * sizeof(float)) {
    throw Error(ErrorCode::kProtocol, "the server passed optimizer state of another size than its shard");
  }
  std::vector<float> state(expected);
  std::memcpy(state.data(), message.payload.data() + sizeof slots, reader.left());
  return state;
}

void Link::say_goodbye(const Interrupt& interrupt) {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ask(ControlKind::kGoodbye, {}, ControlKind::kGoodbyeReply, interrupt);
}

void Link::abandon() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  if (control_) {
    control_->shutdown();
  }
}

void Link::check_alive() const {
  if (lost_.load(std::memory_order_acquire)) {
    const std::lock_guard lock(mutex_);
    throw Error(why_lost_->code(), "the server at " + where_ + " is gone: " + why_lost_->what());
  }
  const auto silent = Clock::now().time_since_epoch() - Clock::duration(last_heard_.load(std::memory_order_relaxed));
  if (silent > std::chrono::duration<double>(deadline_s_)) {
    throw Error(ErrorCode::kDeadlineExceeded, "the server at " + where_ +
                                                  " was silent for longer than the deadline of " +
                                                  std::to_string(deadline_s_) + " s");
  }
}

void Link::lost(const Error& why) {
  {
    const std::lock_guard lock(mutex_);
    why_lost_ = why;
    answered_.notify_all();
  }
  lost_.store(true, std::memory_order_release);
  channel_->close();
}

void Link::explain(const Error& error) const {
  if (error.code() == ErrorCode::kPeerClosed) {
    std::unique_lock lock(mutex_);
    answered_.wait_for(lock, kExplanation, [this] { return why_lost_.has_value(); });
    if (why_lost_) {
      throw Error(why_lost_->code(), "the server at " + where_ + " is gone: " + why_lost_->what());
    }
  }
  throw error;
}

void Link::watch() {
  const std::uint64_t state_bytes = welcome_.range.size() * sizeof(float) + sizeof(std::uint32_t);
  const auto largest = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(state_bytes, kMaxControlBytes, ~0U));
  const double interval_s = std::clamp(deadline_s_ / 4, 0.01, 5.0);
  try {
    while (true) {
      const Deadline next_heartbeat = Deadline::after(interval_s);
      if (!control_->socket().wait(POLLIN, &next_heartbeat, {})) {
        control_->send(ControlKind::kHeartbeat, {}, {}, Deadline::after(deadline_s_));
        continue;
      }
      ControlMessage message = control_->receive(Deadline::after(deadline_s_), {}, largest);
      last_heard_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
      if (message.kind != ControlKind::kHeartbeat) {
        const std::lock_guard lock(mutex_);
        const ControlKind kind = message.kind;
        answers_.insert_or_assign(kind, std::move(message));
        answered_.notify_all();
      }
    }
  } catch (const Error& error) {
    lost(error);
  }
}

}  // namespace distnet
