#include "base/spare_files.h"

#include "base/platform.h"

namespace distnet {

void SpareFiles::keep(std::size_t count) {
  const std::size_t before = files_.size();
  try {
    while (files_.size() < count) {
      files_.emplace_back(create_memory_file());
    }
  } catch (...) {
    files_.resize(before);
    throw;
  }
  files_.resize(count);
}

int SpareFiles::take() {
  if (files_.empty()) {
    return create_memory_file();
  }
  const int fd = files_.back().release();
  files_.pop_back();
  return fd;
}

}  // namespace distnet
