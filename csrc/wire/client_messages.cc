#include "wire/client_messages.h"

#include "wire/learning_rate.h"

namespace distnet {

std::vector<std::byte> SetLearningRate::encode() const {
  Writer writer;
  write_rate(writer, learning_rate);
  return writer.take();
}

SetLearningRate SetLearningRate::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  const std::optional<double> rate = read_rate(reader);
  reader.expect_end();
  if (!rate) {
    throw Error(ErrorCode::kProtocol, "a learning rate that is no number");
  }
  if (!can_be_rate(*rate)) {
    throw Error(ErrorCode::kProtocol, "a learning rate that float32 cannot hold");
  }
  return {*rate};
}

std::vector<std::byte> Save::encode() const {
  Writer writer;
  writer.number(push);
  writer.bytes(data);
  return writer.take();
}

Save Save::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Save save;
  save.push = reader.number<std::uint64_t>();
  const std::span<const std::byte> data = reader.bytes();
  reader.expect_end();
  check_saved_bytes(data.size());
  save.data.assign(data.begin(), data.end());
  return save;
}

std::vector<std::byte> SaveAnswer::encode() const {
  Writer writer;
  writer.text(why_not);
  return writer.take();
}

SaveAnswer SaveAnswer::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  SaveAnswer answer{reader.text()};
  reader.expect_end();
  return answer;
}

void check_saved_bytes(std::size_t count) {
  if (count > kMaxSavedBytes) {
    throw Error(ErrorCode::kProtocol, std::to_string(count) + " bytes to save with a push; at most " +
                                          std::to_string(kMaxSavedBytes) + " are kept for a rank");
  }
}

}  // namespace distnet
