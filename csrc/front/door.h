// Where peers come in: listeners, the handshake, and a thread for each conversation. Knows no shard: whoever it is
// opened for takes the conversations from here.
//
// At a limit of the process a peer is told so. The door keeps some descriptors for that. A conversation on one of them
// must state at once what it wants. It is served only when it brings the second stream of a session that was admitted,
// for which the session has kept a descriptor.
//
// Thread safety: open() and close() from one thread; everything else from any.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "base/threads.h"
#include "base/waiting.h"
#include "front/handshake.h"
#include "transport/listener.h"

namespace distnet {

// A peer that said what it wants.
struct Visitor {
  std::shared_ptr<ControlConnection> control;
  bool within_host = false;  // it came by a Unix socket, and runs as our user
  ControlMessage message;    // its hello, or what stands for it
};

// Takes conversations, each on its own thread, until their end. What is thrown is told to the peer.
class Host {
 public:
  virtual ~Host() = default;
  virtual ProbeReply describe() const = 0;
  virtual void serve(Handshake::Step step, Visitor& visitor) = 0;
  // The stream of a session's payloads, which is not tied to a conversation.
  virtual void attach(const Attach& attach, Stream stream) = 0;
};

// Tells a peer why its conversation ends, also for want of memory or threads.
void refuse(ControlConnection& control, const std::exception& error);

class Door {
 public:
  static constexpr std::size_t kMostConversations = 4096;

  // Throws Error(kTransport) when the process has no descriptors for it.
  explicit Door(Host& host);
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;
  ~Door();

  // Throws Error(kConnect) where the address is taken. Before open().
  const Address& listen(const Address& address);
  void open();
  // Stops accepting, ends all conversations, and joins their threads.
  void close();

 private:
  struct Conversation {
    std::shared_ptr<ControlConnection> control;
    bool within_host = false;
    std::string refusal;  // why it is refused unless it brings a session's second stream; empty: it is served
    std::atomic<bool> ended{false};
    Thread thread;
  };

  void accept_all();
  bool closing();
  void wait_for_knocks(bool exhausted);
  bool let_in(Listener& listener);
  bool begin_conversation(Stream stream, bool within_host, bool on_spare);
  void converse(Conversation& conversation);
  void answer(Conversation& conversation, ControlConnection& control);
  void forget_ended();
  bool keep_spares();

  Host& host_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  FileDescriptor wake_;  // readable when the accepting thread has something else to do
  // The accepting thread keeps these descriptors, and gives one up for each peer that could not be let in otherwise.
  std::vector<FileDescriptor> spares_;
  Thread thread_;
  Mutex mutex_;  // guards what follows
  std::list<Conversation> conversations_;
  bool closing_ = false;
};

}  // namespace distnet
