// Every size of the engine that data is cut by, and how they fit together. Sizes are in float32 elements unless the
// name says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace distnet {

// ---- layout of models and shards ----------------------------------------------------------------------------------
inline constexpr std::uint64_t kCacheLineBytes = 64;
inline constexpr std::uint64_t kPageBytes = 4096;  // the unit of memory that processes share
// Tensors, vectors and slots start on cache lines, so that no two of them share a line and vector stores are aligned.
inline constexpr std::uint64_t kAlignFloats = kCacheLineBytes / sizeof(float);
// Shards of a large model are cut at pages, so that a client can map each shard's replica over its own memory.
inline constexpr std::uint64_t kPageFloats = kPageBytes / sizeof(float);

// ---- progress -----------------------------------------------------------------------------------------------------
// Progress of a vector that is received, computed or copied while another thread uses it is counted in pieces. A piece
// is 64 KiB: long enough that counting costs nothing beside the copy, and short enough that the other side starts
// early.
inline constexpr std::uint64_t kPieceFloats = 16 * 1024;
// A reply counts the delivered parameters in this unit.
inline constexpr std::uint64_t kDeliveredFloats = 1024;

// ---- formats ------------------------------------------------------------------------------------------------------
// A vector is encoded in format chunks, each by itself. Positions in a chunk fit 16 bits, and a chunk and its decoded
// values fit the second level of cache together.
inline constexpr std::size_t kFormatChunkFloats = 16 * 1024;
// One decode() stays within a format chunk, and begins at a multiple of the step, which every format can seek to.
inline constexpr std::size_t kDecodeRunFloats = kFormatChunkFloats;
inline constexpr std::size_t kDecodeStepFloats = 1024;
// int8: a group of values shares one scale. Smaller groups would spend more bytes on scales, larger ones would lose
// small values.
inline constexpr std::size_t kInt8GroupFloats = 256;
// topk skips a run of values by the largest magnitude in it. A run is one cache line.
inline constexpr std::size_t kTopkRunFloats = 16;
// TCP checks and moves a plain vector in bounces, and an encoded one in several chunks for each system call.
inline constexpr std::size_t kBounceFloats = 4 * kFormatChunkFloats;
inline constexpr std::size_t kFormatChunksAtATime = 8;

// ---- updates ------------------------------------------------------------------------------------------------------
// An update computes one block at a time where it joins, decodes or clips gradients: 16 KiB of each vector, so that all
// that it touches stays in the first two levels of cache.
inline constexpr std::size_t kBlockFloats = 4096;
// Optimizers check and apply a gradient in strips. The gradient of a strip fits the vector registers of every processor
// with AVX2, and there is one branch for each strip.
inline constexpr std::size_t kStripFloats = 64;
// The lock-free store gives each chunk of this many parameters one owner at a time. With smaller chunks the words would
// cost more, with larger ones threads would meet more often.
inline constexpr std::uint64_t kStoreChunkFloats = 16 * 1024;

static_assert(kPageFloats % kAlignFloats == 0 && kPieceFloats % kPageFloats == 0, "pieces are whole pages");
static_assert(kPieceFloats % kDeliveredFloats == 0, "delivered pieces can be counted in a reply");
static_assert(kPieceFloats % kBlockFloats == 0 && kStoreChunkFloats % kBlockFloats == 0 &&
                  kFormatChunkFloats % kBlockFloats == 0,
              "an update in pieces is cut where the whole one is cut");
static_assert(kBlockFloats % kStripFloats == 0, "a block is cut into whole strips");
static_assert(kStoreChunkFloats % kDecodeStepFloats == 0 && kPieceFloats % kDecodeStepFloats == 0 &&
                  kBlockFloats % kDecodeStepFloats == 0 && kFormatChunkFloats % kDecodeStepFloats == 0,
              "updates begin where decoders can");
static_assert(kDecodeStepFloats % kInt8GroupFloats == 0 && kFormatChunkFloats % kTopkRunFloats == 0,
              "a decoder begins with a whole group");
static_assert(kFormatChunkFloats <= 65536, "positions in a chunk fit 16 bits");

}  // namespace distnet
