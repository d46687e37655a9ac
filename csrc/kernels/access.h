// The only access layer for floats that another thread or process may read while they are written.
//
// The shipped build uses plain loads and stores, so that loops over them vectorise. On the supported processors vector
// loads and stores of 4-byte aligned floats tear no float. The strict build (DISTNET_STRICT_ATOMICS, used under
// ThreadSanitizer) uses relaxed atomics, which compilers keep scalar. Both give the same values. Order between threads
// comes from the stores' words and versions, never from here.
#pragma once

#if defined(DISTNET_STRICT_ATOMICS)
#include <atomic>
#endif

namespace distnet {

#if defined(DISTNET_STRICT_ATOMICS)
inline float shared_load(const float* from) {
  return std::atomic_ref<float>(*const_cast<float*>(from)).load(std::memory_order_relaxed);
}
inline void shared_store(float* to, float value) {
  std::atomic_ref<float>(*to).store(value, std::memory_order_relaxed);
}
#else
inline float shared_load(const float* from) { return *from; }
inline void shared_store(float* to, float value) { *to = value; }
#endif

}  // namespace distnet
