// All that is Linux-only: memory files that can be sealed and passed, and wake-ups across processes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace distnet {

// What futex_wait() and futex_wake_all() of waiting.h ask of the system.
void sleep_on_word(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::nanoseconds timeout);
void wake_sleepers(const std::atomic<std::uint32_t>& word);

// A memory file of exactly `bytes`, its pages allocated. Throws Error(kConfig).
int create_memory_file(std::size_t bytes);
// No more resizing; without `writable_by_peers` no more writable mappings than there are already.
void seal_memory_file(int fd, bool writable_by_peers);
// Whether `fd` is a memory file of exactly `bytes` that nobody can shrink.
bool is_sealed_memory_file(int fd, std::size_t bytes);

// A descriptor that polls readable once eight bytes have been written to it. -1 when there is none to be had.
int create_event_file();

// Whether so much data is too large for the cache that the cores share: over three quarters of it.
bool exceeds_cache(std::size_t bytes);

// The number of the core that the caller runs on, at this moment.
std::uint32_t current_core();

// What random_number() of random.h asks of the system.
std::uint64_t system_random_number();

}  // namespace distnet
