// Wire formats: how a run of float32 gradient or parameter elements travels in fewer bytes. One file each, one line
// each in formats/table.cc. docs/formats.md holds the bytes.
//
// A vector is cut into format chunks of kFormatChunkFloats elements; the last may be shorter. Each chunk is encoded
// without looking at another, to a size that follows from the format and the chunk's length alone. So a payload has
// exactly one right size, and where any chunk lies in it is known before anything is encoded.
//
// Thread safety: a WireFormat is immutable; any number of threads may use it on different chunks.
//
// Same bits on every kernel path (scalar, AVX2, AVX-512, NEON).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "base/units.h"
#include "wire/codec.h"

namespace distnet {

inline constexpr std::size_t kFormatAlignBytes = 64;  // every encoded chunk starts and ends on a multiple of this

// A format as data: a name of the table and its settings ("topk": "ratio" -> 0.01).
struct FormatSpec {
  std::string name = "float32";
  std::map<std::string, double> settings = {};

  bool operator==(const FormatSpec&) const = default;
};

// Error feedback: what earlier pushes of a chunk left unsent, and where to write what this one leaves. Both null:
// what a format cannot carry is lost. Otherwise each has the chunk's length. They may be the same array, but then a
// push that is given up, because this chunk or a later one is not finite, has spoilt it: a caller that must be able to
// give a push up keeps two and swaps them once all chunks are encoded.
struct Residual {
  const float* carried = nullptr;
  float* left = nullptr;
};

// Throughout: `chunk` is the number of elements of the whole chunk, 1 to kFormatChunkFloats. Arrays of floats may lie
// on any 4-byte boundary, encoded chunks start on 64 bytes. What goes in and what comes out do not overlap.
class WireFormat {
 public:
  virtual ~WireFormat() = default;

  // The bytes are the float32 values themselves: they may be used where they lie, and nothing is ever left unsent.
  virtual bool plain() const { return false; }

  // Whether parameters may travel in it. Gradients may in any.
  virtual bool for_pulls() const { return true; }

  // The encoded size; a multiple of kFormatAlignBytes.
  virtual std::size_t chunk_bytes(std::size_t chunk) const = 0;

  // Encodes v[i] = from[i] * scale + carried[i]; left[i] = v[i] - (what decode() makes of it).
  //
  // Returns whether every v[i] and every decoded value is finite; false also where a finite v[i] is too large for the
  // format. A push is then given up: what lies in `left` means nothing. All chunk_bytes(chunk) bytes are written all
  // the same, and where for_pulls(), a value that is not finite decodes to one that is not finite: parameters that
  // have diverged arrive as such.
  //
  // `from` may be shared with threads that write it meanwhile (see kernels/access.h).
  virtual bool encode(std::byte* to, const float* from, std::size_t chunk, float scale,
                      const Residual& residual) const = 0;

  // Decodes elements [begin, begin + count) of a chunk to `to[0]` and on. `begin` is a multiple of kDecodeStepFloats,
  // begin + count <= chunk. Stays within its arrays whatever the bytes are, even if they change meanwhile.
  virtual void decode(float* to, const std::byte* from, std::size_t chunk, std::size_t begin,
                      std::size_t count) const = 0;

  // Whether the bytes, which may come from a hostile peer, are what an encoder makes of some chunk: true for any bytes
  // where each of them decodes to a number.
  virtual bool valid(const std::byte* from, std::size_t chunk) const {
    return static_cast<void>(from), static_cast<void>(chunk), true;
  }

  // Whether everything that a valid chunk decodes to is finite. Holds for all that encode() returned true for.
  virtual bool finite(const std::byte* from, std::size_t chunk) const = 0;

  // The encoded size of a whole vector, at most 2^40 floats.
  std::uint64_t encoded_bytes(std::uint64_t floats) const;

  // Where chunk number `index` begins in an encoded vector.
  std::uint64_t chunk_offset_bytes(std::uint64_t index) const { return index * chunk_bytes(kFormatChunkFloats); }
};

// Throws Error(kConfig) on an unknown name, an unknown setting, or a setting out of range.
std::unique_ptr<WireFormat> make_format(const FormatSpec& spec);

// The same format with every setting spelled out. Throws like make_format().
FormatSpec complete_format(const FormatSpec& spec);

// A spec in a control message, complete, so that two ends whose defaults differ mean the same. Throws like
// make_format().
void write_format(Writer& writer, const FormatSpec& spec);
// Throws Error(kProtocol) on what cannot be a spec. Names and settings that are not known pass: make_format() names
// them.
FormatSpec read_format(Reader& reader);

}  // namespace distnet
