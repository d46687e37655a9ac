// Wakes the thread of a client's conversation while it waits for something else than the client. The wait ends with the
// client, too, so that nobody is served who has gone.
//
// Thread safety: one thread waits; any thread rings.
#pragma once

#include <string>

#include "base/descriptor.h"
#include "transport/control.h"

namespace distnet {

class Bell {
 public:
  // Throws Error(kTransport), saying that no descriptor is left for `what`.
  explicit Bell(const std::string& what);

  void ring() const;
  // Returns whether it rang before the deadline; it may ring anew afterwards. Throws Error(kPeerClosed) when the client
  // has ended its side of the connection.
  bool wait(const ControlConnection& client, const Deadline& deadline) const;

 private:
  FileDescriptor event_;
};

}  // namespace distnet
