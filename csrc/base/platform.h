// All calls that exist on Linux only: memory files that can be sealed and passed, futexes, events, processes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace distnet {

// futex_wait() and futex_wake_all() of waiting.h call these outside a simulation.
void sleep_on_word(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::nanoseconds timeout);
void wake_sleepers(const std::atomic<std::uint32_t>& word);

// Returns a memory file that holds nothing yet. Throws Error(kTransport) when the process has no descriptor left.
int create_memory_file();
// Makes an empty memory file exactly `bytes` long, with its pages allocated. Throws Error(kConfig).
void allocate_memory_file(int fd, std::size_t bytes);
// Forbids resizing. Unless `writable_by_peers`, also forbids writable mappings other than those that exist already.
void seal_memory_file(int fd, bool writable_by_peers);
// Returns whether `fd` is a memory file of exactly `bytes` that nobody can shrink.
bool is_sealed_memory_file(int fd, std::size_t bytes);

// Returns a descriptor that polls readable from when it is rung until it is drained, or -1 when there is none left.
int create_event_file();
void ring_event_file(int fd);
void drain_event_file(int fd);

// Returns a descriptor that polls readable when the process has ended, or -1 when there is no such process or no
// descriptor left.
int open_process(int process);

// Returns whether `bytes` exceed three quarters of the cache that the cores share.
bool exceeds_cache(std::size_t bytes);

// Returns the number of the core that the caller runs on at this moment.
std::uint32_t current_core();
// Returns how many cores this thread may use.
std::uint32_t usable_cores();

// Has this thread run on another of the cores that it may use, where there is one. The system may move it back.
void leave_core();

// random_number() of random.h calls this outside a simulation. By itself, for what must differ between processes.
std::uint64_t system_random_number();

}  // namespace distnet
