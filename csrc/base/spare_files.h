// Empty memory files, kept for shared memory that is made in the middle of a job. A file without contents takes a
// descriptor and next to no memory, so what is promised to a client costs little until it is needed, and then does not
// fail for want of a descriptor, whatever else the process has opened meanwhile.
//
// Thread safety: none; its owner guards it.
#pragma once

#include <cstddef>
#include <vector>

#include "base/descriptor.h"

namespace distnet {

class SpareFiles {
 public:
  // Makes or closes files until there are `count`. Throws Error(kTransport) when the process has no descriptor for one
  // of them; there are as many as before then.
  void keep(std::size_t count);
  // Takes one out, for the caller to own; makes one where there is none, and throws as keep() does.
  int take();
  std::size_t count() const { return files_.size(); }

 private:
  std::vector<FileDescriptor> files_;
};

}  // namespace distnet
