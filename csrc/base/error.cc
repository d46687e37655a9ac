#include "base/error.h"

#include <cstdio>
#include <cstdlib>

namespace distnet {

void invariant_broken(const char* what, const char* file, int line) {
  std::fprintf(stderr, "distnet: broken invariant at %s:%d: %s\n", file, line, what);
  std::abort();
}

}  // namespace distnet
