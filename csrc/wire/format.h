// Wire formats: how float32 gradients or parameters travel in fewer bytes. A format is one file and one line of
// formats/table.cc. docs/reference/formats.md defines the bytes.
//
// A vector is cut into format chunks of kFormatChunkFloats elements; the last may be shorter. Each chunk is encoded by
// itself, to a size that depends only on the format and the chunk's length. So a payload has exactly one right size,
// and the place of every chunk in it is known before anything is encoded.
//
// Thread safety: a WireFormat is immutable; any number of threads may use it on different chunks.
//
// Every instruction set gives the same bits.
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

// A format as data: its name in the table and its settings ("topk": "ratio" -> 0.01).
struct FormatSpec {
  std::string name = "float32";
  std::map<std::string, double> settings = {};

  bool operator==(const FormatSpec&) const = default;
};

// Error feedback. `carried` is what earlier pushes of a chunk left unsent, and `left` receives what this push leaves
// unsent. Each has the chunk's length. When both are null, what the format cannot carry is lost. They may be the same
// array, but a push that is then given up, because some chunk is not finite, has spoilt it. A caller that must be able
// to give a push up keeps two arrays and swaps them once all chunks are encoded.
struct Residual {
  const float* carried = nullptr;
  float* left = nullptr;
};

// `chunk` is always the number of elements of the whole chunk, 1 to kFormatChunkFloats. Arrays of floats may start on
// any 4-byte boundary, encoded chunks start on 64 bytes. Input and output do not overlap.
class WireFormat {
 public:
  virtual ~WireFormat() = default;

  // Returns whether the bytes are the float32 values themselves. They can then be used in place, and nothing is ever
  // left unsent.
  virtual bool plain() const { return false; }

  // Returns whether parameters may travel in it. Gradients may travel in every format.
  virtual bool for_pulls() const { return true; }

  // Returns the encoded size, a multiple of kFormatAlignBytes.
  virtual std::size_t chunk_bytes(std::size_t chunk) const = 0;

  // Encodes v[i] = from[i] * scale + carried[i], and sets left[i] = v[i] - (the value that decode() gives).
  //
  // Returns whether every v[i] and every decoded value is finite; a finite v[i] that is too large for the format gives
  // false, too. The push is then given up, and the contents of `left` mean nothing. All chunk_bytes(chunk) bytes are
  // written in any case. Where for_pulls(), a value that is not finite decodes to one that is not finite, so that
  // parameters that have diverged arrive as such.
  //
  // Other threads may write `from` meanwhile (see kernels/access.h).
  virtual bool encode(std::byte* to, const float* from, std::size_t chunk, float scale,
                      const Residual& residual) const = 0;

  // Decodes elements [begin, begin + count) of a chunk to to[0], to[1], .... `begin` is a multiple of
  // kDecodeStepFloats, and begin + count <= chunk. It stays within its arrays whatever the bytes are, even if they
  // change meanwhile. Returns whether all that it wrote is finite.
  virtual bool decode(float* to, const std::byte* from, std::size_t chunk, std::size_t begin,
                      std::size_t count) const = 0;

  // Returns whether an encoder can have made the bytes, which may come from a hostile peer. Always true for a format
  // that decodes any bytes to numbers.
  virtual bool valid(const std::byte* from, std::size_t chunk) const {
    return static_cast<void>(from), static_cast<void>(chunk), true;
  }

  // Returns whether everything in a chunk decodes to finite values, as in every chunk for which encode() returned true.
  // The bytes may come from a hostile peer; of a chunk that is not valid() it may say false all the same.
  virtual bool finite(const std::byte* from, std::size_t chunk) const = 0;

  // Returns the encoded size of a whole vector of at most 2^40 floats.
  std::uint64_t encoded_bytes(std::uint64_t floats) const;

  // Returns where chunk number `index` begins in an encoded vector.
  std::uint64_t chunk_offset_bytes(std::uint64_t index) const { return index * chunk_bytes(kFormatChunkFloats); }
};

// Throws Error(kConfig) on an unknown name, an unknown setting, or a setting out of range.
std::unique_ptr<WireFormat> make_format(const FormatSpec& spec);

// Returns the same format with every setting spelled out. Throws like make_format().
FormatSpec complete_format(const FormatSpec& spec);

// Writes a spec into a control message with every setting, so that two ends with different defaults agree. Throws like
// make_format().
void write_format(Writer& writer, const FormatSpec& spec);
// Throws Error(kProtocol) on bytes that cannot be a spec. Unknown names and settings pass, because make_format()
// reports them by name.
FormatSpec read_format(Reader& reader);

}  // namespace distnet
