# How every file of the engine is compiled: the language, the sanitizer, the warnings. Portable: never -march=native.

add_library(distnet_language INTERFACE)
target_compile_features(distnet_language INTERFACE cxx_std_20)
# Kernels give the same bits on every path only without fused multiply-add.
# Square roots vectorise only where they need not set errno; the bits are the same.
# Loops begin on 32 bytes: a short one that lies across two cache lines of code takes a fifth longer, and where it lies
# would otherwise change with every commit.
# Sanitizer builds are compiled with -O1, which halves the time that takes.
target_compile_options(distnet_language INTERFACE
  $<IF:$<BOOL:${DISTNET_SANITIZE}>,-O1,-O3> -ffp-contract=off -fno-math-errno
  -falign-loops=32)

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_library(distnet_warnings INTERFACE)
target_compile_options(distnet_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion
                                                  $<$<BOOL:${DISTNET_WERROR}>:-Werror>)

if(DISTNET_SANITIZE STREQUAL "thread")
  # The strict path of csrc/kernels/access.h: ThreadSanitizer does not know that aligned vector accesses are whole.
  target_compile_definitions(distnet_language INTERFACE DISTNET_STRICT_ATOMICS)
  set(sanitizer_options -fsanitize=thread)
elseif(DISTNET_SANITIZE STREQUAL "address")
  # Without vptr: that check opens a pipe to look at memory, and fails where a test has taken all descriptors.
  set(sanitizer_options -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all)
elseif(DISTNET_SANITIZE)
  message(FATAL_ERROR "DISTNET_SANITIZE is '${DISTNET_SANITIZE}'; expected nothing, 'thread' or 'address'")
endif()
if(sanitizer_options)
  # Line numbers are all of the debug information that reports need; more takes a quarter of the compile time.
  add_compile_options(${sanitizer_options} -g1 -fno-omit-frame-pointer)
  add_link_options(${sanitizer_options})
endif()
