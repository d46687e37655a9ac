#include "wire/manifest.h"

#include <algorithm>
#include <numeric>
#include <unordered_set>

#include "wire/protocol.h"

namespace distnet {
namespace {

constexpr std::size_t kMaxTensors = std::size_t{1} << 20U;
constexpr std::size_t kMaxNameBytes = 1024;
constexpr std::size_t kMaxDimensions = 32;
constexpr std::uint64_t kMaxFloats = std::uint64_t{1} << 40U;
constexpr std::uint64_t kMessageRestBytes = 64U << 10U;  // for what else a message says that carries a manifest

std::uint64_t tensor_bytes(const Tensor& tensor) {
  return sizeof(std::uint32_t) + tensor.name.size() + sizeof(std::uint8_t) +
         tensor.shape.size() * sizeof(std::uint64_t);
}

void check_size(const Manifest& manifest) {
  constexpr std::uint64_t kMost = kMaxManifestBytes - kMessageRestBytes;
  const std::uint64_t bytes = manifest_bytes(manifest);
  if (bytes > kMost) {
    throw Error(ErrorCode::kConfig, "the names and shapes of the model's " + std::to_string(manifest.tensors.size()) +
                                        " tensors take " + std::to_string(bytes) + " bytes; a message carries " +
                                        std::to_string(kMost) + ": use shorter names, or fewer and larger tensors");
  }
}

std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; }

std::uint64_t element_count(const NamedShape& tensor) {
  std::uint64_t count = 1;
  for (const std::uint64_t extent : tensor.shape) {
    if (extent != 0 && count > kMaxFloats / extent) {
      throw Error(ErrorCode::kConfig, "tensor '" + tensor.name + "' has more than 2^40 elements");
    }
    count *= extent;
  }
  return count;
}

}  // namespace

Manifest make_manifest(bool named, const std::vector<NamedShape>& tensors) {
  if (tensors.size() > kMaxTensors) {
    throw Error(ErrorCode::kConfig,
                "a model of " + std::to_string(tensors.size()) + " tensors; at most 2^20 are supported");
  }
  Manifest manifest;
  manifest.named = named;
  std::unordered_set<std::string> seen;
  for (const NamedShape& tensor : tensors) {
    if (tensor.name.empty() || tensor.name.size() > kMaxNameBytes || tensor.shape.size() > kMaxDimensions) {
      throw Error(ErrorCode::kConfig, "tensor names have 1 to 1024 bytes and shapes at most 32 dimensions");
    }
    if (!seen.insert(tensor.name).second) {
      throw Error(ErrorCode::kConfig, "two tensors are named '" + tensor.name + "'");
    }
    const std::uint64_t count = element_count(tensor);
    manifest.tensors.push_back({tensor.name, tensor.shape, manifest.size, count});
    manifest.size = round_up(manifest.size + count, kAlignFloats);
    if (manifest.size > kMaxFloats) {
      throw Error(ErrorCode::kConfig, "the model has more than 2^40 parameters");
    }
  }
  check_size(manifest);
  return manifest;
}

ShardRange shard_range(const Manifest& manifest, std::uint32_t index, std::uint32_t shards) {
  if (shards == 0 || index >= shards) {
    throw Error(ErrorCode::kConfig, "shard " + std::to_string(index) + " of " + std::to_string(shards));
  }
  const std::uint64_t unit = manifest.size >= shards * kPageFloats ? kPageFloats : kAlignFloats;
  const std::uint64_t units = std::max<std::uint64_t>(round_up(manifest.size, unit) / unit, shards);
  const auto cut = [&](std::uint64_t i) { return units * i / shards * unit; };
  ShardRange range{cut(index), cut(std::uint64_t{index} + 1)};
  if (index + 1 == shards) {  // the last shard ends with the model, unless that would leave it nothing
    range.end = std::max(manifest.size, range.begin + kAlignFloats);
  }
  return range;
}

std::vector<TensorSlice> slices_of(const Manifest& manifest, ShardRange range) {
  std::vector<TensorSlice> slices;
  const auto ends_before = [&](const Tensor& tensor) { return tensor.offset + tensor.count <= range.begin; };
  const auto first = std::ranges::partition_point(manifest.tensors, ends_before);
  for (auto at = first; at != manifest.tensors.end() && at->offset < range.end; ++at) {
    const auto i = static_cast<std::size_t>(at - manifest.tensors.begin());
    const Tensor& tensor = *at;
    const std::uint64_t begin = std::max(tensor.offset, range.begin);
    const std::uint64_t end = std::min(tensor.offset + tensor.count, range.end);
    if (begin < end) {
      slices.push_back({i, begin - tensor.offset, begin - range.begin, end - begin});
    }
  }
  return slices;
}

std::vector<float> gather(const Manifest& manifest, ShardRange range, std::span<const float* const> tensors) {
  std::vector<float> values(range.size());
  for (const TensorSlice& slice : slices_of(manifest, range)) {
    std::copy_n(tensors[slice.tensor] + slice.tensor_offset, slice.count, values.data() + slice.shard_offset);
  }
  return values;
}

std::uint64_t manifest_bytes(const Manifest& manifest) {
  constexpr std::uint64_t kHeadBytes = sizeof(std::uint8_t) + sizeof(std::uint32_t);
  return std::accumulate(manifest.tensors.begin(), manifest.tensors.end(), kHeadBytes,
                         [](std::uint64_t sum, const Tensor& tensor) { return sum + tensor_bytes(tensor); });
}

void write_manifest(Writer& writer, const Manifest& manifest) {
  writer.number(static_cast<std::uint8_t>(manifest.named));
  writer.number(static_cast<std::uint32_t>(manifest.tensors.size()));
  for (const Tensor& tensor : manifest.tensors) {
    writer.text(tensor.name);
    writer.number(static_cast<std::uint8_t>(tensor.shape.size()));
    for (const std::uint64_t extent : tensor.shape) {
      writer.number(extent);
    }
  }
}

Manifest read_manifest(Reader& reader) {
  const bool named = reader.number<std::uint8_t>() != 0;
  const auto count = reader.number<std::uint32_t>();
  if (count > kMaxTensors) {
    throw Error(ErrorCode::kProtocol, "a manifest of " + std::to_string(count) + " tensors; at most 2^20 are taken");
  }
  std::vector<NamedShape> tensors;  // grows only as bytes are there: each tensor takes at least 5
  for (std::uint32_t i = 0; i < count; ++i) {
    NamedShape tensor;
    tensor.name = reader.text();
    const auto dimensions = reader.number<std::uint8_t>();
    for (std::uint8_t d = 0; d < dimensions; ++d) {
      tensor.shape.push_back(reader.number<std::uint64_t>());
    }
    tensors.push_back(std::move(tensor));
  }
  try {
    return make_manifest(named, tensors);
  } catch (const Error& error) {
    throw Error(ErrorCode::kProtocol, std::string("a manifest that cannot be: ") + error.what());
  }
}

}  // namespace distnet
