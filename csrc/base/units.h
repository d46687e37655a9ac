// Every block size of the engine, once, and how they fit together. In float32 elements unless the name says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace distnet {

// ---- layout of models and shards ----------------------------------------------------------------------------------
inline constexpr std::uint64_t kCacheLineBytes = 64;
inline constexpr std::uint64_t kPageBytes = 4096;  // of memory that processes share
// Tensors, vectors and slots start on cache lines, so that no two of them share one and vector stores are aligned.
inline constexpr std::uint64_t kAlignFloats = kCacheLineBytes / sizeof(float);
// Shards are cut at pages where the model is large enough, so that a client can map each shard's replica over its own.
inline constexpr std::uint64_t kPageFloats = kPageBytes / sizeof(float);

// ---- progress -----------------------------------------------------------------------------------------------------
// The progress of a vector that arrives, is made or is copied while somebody works on it is counted in pieces: 64 KiB,
// long enough that telling costs nothing beside the copy, and short enough that the other side starts early.
inline constexpr std::uint64_t kPieceFloats = 16 * 1024;
// A reply says in these how much of its parameters was delivered.
inline constexpr std::uint64_t kDeliveredFloats = 1024;

// ---- formats ------------------------------------------------------------------------------------------------------
// A vector is encoded in chunks of so many elements, each by itself: places in a chunk fit 16 bits, and a chunk fits
// the second level of cache beside what it is decoded to.
inline constexpr std::size_t kFormatChunkFloats = 16 * 1024;
// One decode() stays within a chunk, and begins at a multiple of the step, which every format can seek to.
inline constexpr std::size_t kDecodeRunFloats = kFormatChunkFloats;
inline constexpr std::size_t kDecodeStepFloats = 1024;
// int8: the values that share one scale. Fewer would spend more bytes on scales, more would lose small values.
inline constexpr std::size_t kInt8BlockFloats = 256;
// topk: a run of values without a candidate is skipped by its largest magnitude. One cache line.
inline constexpr std::size_t kTopkRunFloats = 16;
// TCP: a plain vector is looked at and moved in bounces; an encoded one in groups of chunks, one system call each.
inline constexpr std::size_t kBounceFloats = 4 * kFormatChunkFloats;
inline constexpr std::size_t kChunksAtATime = 8;

// ---- updates ------------------------------------------------------------------------------------------------------
// A gradient that is joined, decoded or clipped is put together in blocks small enough that all that an update touches
// of one (16 KiB a vector) stays in the first two levels of cache.
inline constexpr std::size_t kBlockFloats = 4096;
// The lock-free store gives each chunk of so many parameters one owner at a time: fewer would spend more on the words,
// more would let threads meet more often.
inline constexpr std::uint64_t kChunkFloats = 16 * 1024;

static_assert(kPageFloats % kAlignFloats == 0 && kPieceFloats % kPageFloats == 0, "pieces are whole pages");
static_assert(kPieceFloats % kDeliveredFloats == 0, "what was copied piece by piece can be told");
static_assert(kPieceFloats % kBlockFloats == 0 && kChunkFloats % kBlockFloats == 0 &&
                  kFormatChunkFloats % kBlockFloats == 0,
              "an update in pieces is cut where the whole one is cut");
static_assert(kChunkFloats % kDecodeStepFloats == 0 && kPieceFloats % kDecodeStepFloats == 0 &&
                  kBlockFloats % kDecodeStepFloats == 0 && kFormatChunkFloats % kDecodeStepFloats == 0,
              "updates begin where decoders can");
static_assert(kDecodeStepFloats % kInt8BlockFloats == 0 && kFormatChunkFloats % kTopkRunFloats == 0,
              "a decoder begins with a whole block");
static_assert(kFormatChunkFloats <= 65536, "places in a chunk fit 16 bits");

}  // namespace distnet
