// The tensors of a model, where each lies in the flat vector, and how the vector is cut into shards.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/units.h"
#include "wire/codec.h"

namespace distnet {

struct Tensor {
  std::string name;
  std::vector<std::uint64_t> shape;
  std::uint64_t offset = 0;  // floats
  std::uint64_t count = 0;   // floats

  bool operator==(const Tensor&) const = default;
};

struct ShardRange {
  std::uint64_t begin = 0;  // floats
  std::uint64_t end = 0;
  std::uint64_t size() const { return end - begin; }
  bool operator==(const ShardRange&) const = default;
};

struct Manifest {
  bool named = false;  // given as {name: array}; otherwise as a list, and the names are "0", "1", ...
  std::vector<Tensor> tensors;
  std::uint64_t size = 0;  // floats, padding included

  bool empty() const { return tensors.empty(); }
  bool operator==(const Manifest&) const = default;
};

struct NamedShape {
  std::string name;
  std::vector<std::uint64_t> shape;
};

// Lays the tensors out one after another. Throws Error(kConfig) on duplicate or over-long names, on more than 2^20
// tensors, on sizes over 2^40 floats, and on a model whose names and shapes exceed what one message carries.
Manifest make_manifest(bool named, const std::vector<NamedShape>& tensors);

// Returns the range of shard `index`. The shards are equal, cut at pages, or at 64 bytes when a shard has less than a
// page. The last shards of a tiny model may hold only padding.
ShardRange shard_range(const Manifest& manifest, std::uint32_t index, std::uint32_t shards);

// The elements of one tensor that lie in one shard.
struct TensorSlice {
  std::size_t tensor = 0;           // its place in the manifest
  std::uint64_t tensor_offset = 0;  // floats from the tensor's first
  std::uint64_t shard_offset = 0;   // floats from the shard's first
  std::uint64_t count = 0;          // floats
};

// Returns a slice of every tensor that reaches into the range, in order of offset. Empty tensors have no slice.
std::vector<TensorSlice> slices_of(const Manifest& manifest, ShardRange range);

// Returns the range's floats. `tensors` holds one pointer for each tensor; padding is 0.
std::vector<float> gather(const Manifest& manifest, ShardRange range, std::span<const float* const> tensors);

std::uint64_t manifest_bytes(const Manifest& manifest);  // that write_manifest() writes
void write_manifest(Writer& writer, const Manifest& manifest);
// Throws Error(kProtocol) on anything that make_manifest() would not have made.
Manifest read_manifest(Reader& reader);

}  // namespace distnet
