// The tensors of a model and where each lies in the flat vector; and how the vector is cut into shards.
#pragma once

#include <cstdint>
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
  bool named = false;  // given as {name: array}; otherwise a list, and names are "0", "1", …
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
// tensors, and on sizes over 2^40 floats.
Manifest make_manifest(bool named, const std::vector<NamedShape>& tensors);

// Shard `index` of `shards`: even parts, cut at pages (at 64 bytes where the model is under a page a shard). The last
// shard may hold padding alone where the model is smaller than that.
ShardRange shard_range(const Manifest& manifest, std::uint32_t index, std::uint32_t shards);

void write_manifest(Writer& writer, const Manifest& manifest);
// Throws Error(kProtocol) on anything that make_manifest would not have made.
Manifest read_manifest(Reader& reader);

}  // namespace distnet
