#include "group/process_number.h"

#include <unistd.h>

#include "base/platform.h"

namespace distnet {

std::uint64_t process_number() {
  static const std::uint64_t number = system_random_number();
  return number + static_cast<std::uint64_t>(getpid());
}

}  // namespace distnet
