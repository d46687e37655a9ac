// Function multiversioning, so that one portable build uses AVX2 and AVX-512 where the machine has them.
//
// DISTNET_MULTIVERSION goes before a non-template, non-inline function whose loops should be compiled once for each
// level. All versions give the same bits: the build sets -ffp-contract=off, and the order of a reduction does not
// depend on the vector width. The macro is empty in strict builds, whose loops stay scalar, and under ThreadSanitizer,
// which starts after ifunc resolvers run.
//
// DISTNET_INDEPENDENT goes before a loop whose iterations do not depend on each other, even where output and input are
// the same array. The compiler then needs no overlap check at run time.
//
// DISTNET_NO_MEMCPY goes before a function with a loop that copies. Compilers would turn the copying into a call of
// memcpy, which does not promise to keep floats whole, and read the values a second time for what else the loop does.
//
// DISTNET_ALWAYS_INLINE goes before a function that is a part of such functions, and DISTNET_INLINE_LAMBDA after such a
// lambda's parameters: the part is then compiled for their level.
#pragma once

#include <cstddef>  // also tells whether the C library is glibc, which has the ifuncs this needs

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__) && \
    !defined(DISTNET_STRICT_ATOMICS) && !defined(__SANITIZE_THREAD__)
#define DISTNET_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define DISTNET_MULTIVERSION
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define DISTNET_NO_MEMCPY __attribute__((optimize("no-tree-loop-distribute-patterns")))
#elif defined(__clang__)
#define DISTNET_NO_MEMCPY __attribute__((no_builtin("memcpy", "memmove")))
#else
#define DISTNET_NO_MEMCPY
#endif

#if defined(__GNUC__)
#define DISTNET_ALWAYS_INLINE inline __attribute__((always_inline))
#define DISTNET_INLINE_LAMBDA __attribute__((always_inline))
#else
#define DISTNET_ALWAYS_INLINE inline
#define DISTNET_INLINE_LAMBDA
#endif

#if defined(__clang__)
#define DISTNET_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define DISTNET_INDEPENDENT _Pragma("GCC ivdep")
#else
#define DISTNET_INDEPENDENT
#endif
