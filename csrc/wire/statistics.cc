#include "wire/statistics.h"

#include <array>
#include <charconv>
#include <string_view>

namespace distnet {
namespace {

// One JSON value after another. Texts are names of our own tables, which need no escapes.
std::string json_of(std::uint32_t value) { return std::to_string(value); }
std::string json_of(std::uint64_t value) { return std::to_string(value); }
// As few digits as give the same value again, and a point or an exponent, which tells it from a whole number.
std::string json_of(double value) {
  std::array<char, 32> digits{};
  const std::to_chars_result end = std::to_chars(digits.data(), digits.data() + digits.size(), value);
  const std::string text(digits.data(), end.ptr);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}
std::string json_of(const std::string& text) { return '"' + text + '"'; }
std::string json_of(const std::optional<std::uint32_t>& value) { return value ? std::to_string(*value) : "null"; }
std::string json_of(const StalenessStatistics& staleness);
std::string json_of(const SessionStatistics& session);
std::string json_of(const EndedSession& session);

template <typename T>
std::string json_of(const std::vector<T>& values) {
  std::string json = "[";
  for (const T& value : values) {
    json += (json.size() > 1 ? ", " : "") + json_of(value);
  }
  return json + "]";
}

class JsonObject {
 public:
  template <typename T>
  JsonObject& field(std::string_view name, const T& value) {
    json_ += (json_.size() > 1 ? ", \"" : "\"") + std::string(name) + "\": " + json_of(value);
    return *this;
  }
  std::string end() const { return json_ + "}"; }

 private:
  std::string json_ = "{";
};

std::string json_of(const StalenessStatistics& staleness) {
  return JsonObject().field("max", staleness.max).field("mean", staleness.mean).field("counts", staleness.counts).end();
}

std::string json_of(const SessionStatistics& session) {
  return JsonObject()
      .field("id", session.id)
      .field("role", session.role)
      .field("rank", session.rank)
      .field("incarnation", session.incarnation)
      .field("presence", session.presence)
      .field("transport", session.transport)
      .field("accepted", session.accepted)
      .field("applied", session.applied)
      .field("refused", session.refused)
      .field("staleness", session.staleness)
      .end();
}

std::string json_of(const EndedSession& session) {
  return JsonObject()
      .field("rank", session.rank)
      .field("incarnation", session.incarnation)
      .field("how", session.how)
      .end();
}

}  // namespace

std::string ShardStatistics::json() const {
  return JsonObject()
      .field("updates", updates)
      .field("version", version)
      .field("floats", floats)
      .field("state_vectors", state_vectors)
      .field("learning_rate", learning_rate)
      .field("queue_depth", queue_depth)
      .field("round", round)
      .field("awaited", awaited)
      .field("accepted", accepted)
      .field("applied", applied)
      .field("refused", refused)
      .field("refused_in_part", refused_in_part)
      .field("abstained", abstained)
      .field("rates_differed", rates_differed)
      .field("cut_off", cut_off)
      .field("pulls", pulls)
      .field("snapshots", snapshots)
      .field("snapshot_pause_last_s", snapshot_pause_last_s)
      .field("snapshot_pause_longest_s", snapshot_pause_longest_s)
      .field("workers_done", workers_done)
      .field("workers_died", workers_died)
      .field("workers_silent", workers_silent)
      .field("staleness", staleness)
      .field("sessions", sessions)
      .field("ended", ended)
      .field("groups", groups)
      .field("bytes_received", connections.bytes_received)
      .field("bytes_sent", connections.bytes_sent)
      .end();
}

}  // namespace distnet
