// How a link begins: the way to the server, the handshake, the model where there is none, and the channel.
#include "base/error.h"
#include "client/bringing.h"
#include "client/link.h"
#include "wire/client_messages.h"

namespace distnet {
namespace {

// Says the first word of a conversation. A server at a limit may have refused it before it was said.
void say_first(ControlConnection& control, ControlKind kind, std::span<const std::byte> payload = {}) {
  try {
    control.send(kind, payload);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kPeerClosed) {
      static_cast<void>(control.receive(Deadline::after(kExplanationSeconds)));  // throws what the server said
    }
    throw;
  }
}

}  // namespace

Interrupt WhileConnecting::look_and(const Interrupt& interrupt) const {
  return [this, &interrupt] {
    for (const Interrupt* const each : {&look, &interrupt}) {
      if (*each) {
        (*each)();
      }
    }
  };
}

ProbeReply Link::probe(const Address& address, const Deadline& deadline, const Interrupt& interrupt) {
  ControlConnection control(Stream::connect(address, deadline, interrupt));
  say_first(control, ControlKind::kProbe);
  const ControlMessage message = control.receive(deadline, interrupt);
  if (message.kind != ControlKind::kProbeReply) {
    throw Error(ErrorCode::kProtocol, address.text() + " does not answer a probe");
  }
  return ProbeReply::decode(message.payload);
}

void Link::connect_control(const Address& address, const Deadline& deadline, const Interrupt& interrupt) {
  control_ = std::make_unique<ControlConnection>(Stream::connect(address, deadline, interrupt));
  control_->stream().give_up_after(timeout_s_);
}

void Link::open(const Options& options, const Deadline& deadline, const Interrupt& interrupt) {
  const Address& address = options.address();
  const Interrupt looking = options.waiting.look_and(interrupt);
  if (address.within_host()) {
    if (options.transport != nullptr && !options.transport->within_host) {
      throw Error(ErrorCode::kConfig, where_ + " has no TCP; start the server at tcp://host:port");
    }
    connect_control(address, deadline, looking);
    greet(options, transport_within_host(), interrupt);
    return;
  }
  if (options.transport == nullptr || options.transport->within_host) {
    if (try_local(options, probe(address, deadline, looking), deadline, interrupt)) {
      return;
    }
    if (options.transport != nullptr) {
      throw Error(ErrorCode::kConfig,
                  "the server at " + where_ + " is not on this host; use transport='tcp' or 'auto'");
    }
  }
  connect_control(address, deadline, looking);
  greet(options, transport_between_hosts(), interrupt);
}

// Whether the server behind the local name on this host is the one that answered over TCP. It proves it by the nonce in
// the memory that it passes.
bool Link::try_local(const Options& options, const ProbeReply& remote, const Deadline& deadline,
                     const Interrupt& interrupt) {
  const Address local{Address::Kind::kUnix, remote.local_name, 0};
  const Interrupt looking = options.waiting.look_and(interrupt);
  try {
    connect_control(local, deadline, looking);
    const ProbeReply here = probe(local, deadline, looking);
    if (here.nonce[0] != remote.nonce[0] || here.nonce[1] != remote.nonce[1]) {
      return false;
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kDeadlineExceeded || error.code() == ErrorCode::kTransport) {
      throw;  // it is here, and does not answer or is at a limit
    }
    return false;  // another host, another network namespace, another user's server of that name
  }
  greet(options, transport_within_host(), interrupt);
  return true;
}

// The next message of the handshake. The server says why the client has to wait, and while another client brings the
// model, it sends heartbeats. What it says to all clients may come at any time: such a notice is kept.
ControlMessage Link::next_of_handshake(const Options& options, const Interrupt& interrupt) {
  while (true) {
    ControlMessage message = control_->receive_in_pace(timeout_s_, interrupt, kMaxManifestBytes);
    if (message.kind == ControlKind::kHeartbeat) {
      continue;
    }
    if (message.kind == ControlKind::kNotice) {
      const Notice notice = Notice::decode(message.payload);
      const bool model_comes = notice.kind == Notice::Kind::kModelComes;
      if (!model_comes && notice.kind != Notice::Kind::kModelAwaited) {
        hear(std::move(message));
      } else if (options.waiting.heard) {
        options.waiting.heard("the server at " + where_ + " " + notice.text, model_comes);
      }
      continue;
    }
    return message;
  }
}

void Link::greet(const Options& options, const Transport& transport, const Interrupt& interrupt) {
  Hello hello = options.hello;
  hello.transport = transport.kind;
  hello.brings_parameters = options.initial.has_value() && options.shard == 0;
  say_first(*control_, ControlKind::kHello, hello.encode());
  ControlMessage message = next_of_handshake(options, options.waiting.look_and(interrupt));
  if (message.kind == ControlKind::kNeedParameters && options.initial) {
    bring_model(*control_, BringGrant::decode(message.payload), hello.id, *options.initial, options.shards, timeout_s_,
                interrupt);
    message = next_of_handshake(options, interrupt);
  }
  if (message.kind != ControlKind::kWelcome) {
    throw Error(ErrorCode::kProtocol, "the server at " + where_ + " did not answer the hello with a welcome");
  }
  join_channel(options, transport, message, interrupt);
  message = next_of_handshake(options, interrupt);
  while (message.kind == ControlKind::kSaved) {
    check_saved_bytes(message.payload.size());
    saved_ = std::move(message.payload);
    message = next_of_handshake(options, interrupt);
  }
  if (message.kind != ControlKind::kAttached) {
    throw Error(ErrorCode::kProtocol, "the server at " + where_ + " did not confirm the channel");
  }
}

void Link::join_channel(const Options& options, const Transport& transport, ControlMessage& message,
                        const Interrupt& interrupt) {
  welcome_ = Welcome::decode(message.payload);
  timeout_s_ = welcome_.timeout_s;
  control_->stream().give_up_after(timeout_s_);
  Stream data;
  if (transport.second_stream) {
    ControlConnection attaching(Stream::connect(options.address(), Deadline::after(timeout_s_), interrupt));
    attaching.send(ControlKind::kAttach, Attach{welcome_.session, welcome_.secret}.encode());
    data = attaching.give_stream();
  }
  channel_ = transport.join(shape_of(welcome_, options.hello.role, transport), options.tuning, std::move(data),
                            std::move(message.fds),
                            {[this](std::uint32_t index) { return map_buffer(index); }, [this] { wake_server(); }});
}

}  // namespace distnet
