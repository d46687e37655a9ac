// Serves a model in the test's process, so that a sanitizer sees both ends at once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "server/shard_server.h"

namespace served {

using namespace distnet;

inline constexpr std::uint64_t kOwner = 7;  // by this number a client is known as the owner's

struct Case {
  std::string semantics = "async-apply";  // which of the named policies
  std::uint32_t workers = 1;
  std::uint32_t shards = 1;
  std::uint64_t floats = 1000;
  std::string address = "shm://";
  OnLoss on_loss = OnLoss::kShrink;
  double round_timeout_s = 300.0;
  double reconnect_timeout_s = 0.0;
  bool started = true;
};

inline UpdatePolicy policy_of(const Case& a_case) {
  UpdatePolicy policy;
  policy.joins = a_case.semantics == "sync" ? Joins::kAll : Joins::kOne;
  const bool reply_first = a_case.semantics == "async-locked" || a_case.semantics == "async-lockfree";
  policy.replies = reply_first ? Replies::kBeforeApply : Replies::kAfterApply;
  policy.guard = a_case.semantics == "async-lockfree" ? "lock-free" : "mutex";
  policy.workers = a_case.workers;
  policy.on_loss = a_case.on_loss;
  policy.round_timeout_s = a_case.round_timeout_s;
  return policy;
}

// A served model with SGD at rate 1 and parameters that start at 0. After gradients g1, g2, ... every parameter is -(g1
// + g2 + ...).
class Served {
 public:
  explicit Served(const Case& a_case) : manifest_(make_manifest(false, {{"0", {a_case.floats}}})) {
    for (std::uint32_t i = 0; i < a_case.shards; ++i) {
      ShardSettings settings;
      settings.policy = policy_of(a_case);
      settings.optimizer.name = "sgd";
      settings.schedule.learning_rate = 1.0;
      settings.shard = i;
      settings.shards = a_case.shards;
      settings.job_secret = {4, 2};
      settings.owner = kOwner;
      settings.reconnect_timeout_s = a_case.reconnect_timeout_s;
      servers_.push_back(std::make_unique<ShardServer>(settings, parse_address(a_case.address)));
      address_ += i == 0 ? "" : ",";
      address_ += servers_.back()->address();
    }
    for (std::uint32_t i = 0; i < a_case.shards; ++i) {
      const ShardRange range = shard_range(manifest_, i, a_case.shards);
      servers_[i]->initialise(manifest_, range, std::vector<float>(range.size(), 0.0F));
      servers_[i]->set_directory(address_, parse_addresses(address_).front());
    }
    if (!a_case.started) {
      return;
    }
    for (const auto& server : servers_) {
      server->start();
    }
  }

  const std::string& address() const { return address_; }
  ShardServer& shard(std::size_t index = 0) { return *servers_[index]; }
  void stop() {
    for (const auto& server : servers_) {
      server->stop();
    }
  }

 private:
  Manifest manifest_;
  std::vector<std::unique_ptr<ShardServer>> servers_;
  std::string address_;
};

// A worker that pushes gradients of one value.
class Worker {
 public:
  Worker(const std::string& address, std::optional<std::uint32_t> rank, const Transport& transport,
         double timeout_s = 30.0, std::uint32_t start = 0)
      : client_({address, rank, timeout_s, &transport, {}, start, 0}, {}, {}, {}),
        gradient_(client_.manifest().tensors[0].count) {}

  std::uint64_t begin(Client::Call call, float value, Client::Then then = Client::Then::kLater,
                      const PushSettings& settings = {}) {
    gradient_.assign(gradient_.size(), value);
    const float* const pointer = gradient_.data();
    const bool pushes = call == Client::Call::kPush || call == Client::Call::kPushPull;
    return client_.begin(call, pushes ? std::span(&pointer, 1) : std::span<const float* const>{}, then, {}, settings);
  }
  // Waits for the reply and returns the first parameter that it brings.
  float finish(std::uint64_t number) {
    client_.finish(number, {}, {});
    return client_.flat()[0];
  }
  float call(Client::Call call, float value = 0.0F, const PushSettings& settings = {}) {
    return finish(begin(call, value, Client::Then::kAtOnceInFlat, settings));
  }
  Client& client() { return client_; }

 private:
  Client client_;
  std::vector<float> gradient_;
};

inline const Transport& shm() { return transport_named("shm"); }
inline const Transport& tcp() { return transport_named("tcp"); }

// Returns the code of the Error that `call` throws, and kNone when it throws none.
template <typename Call>
ErrorCode code_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kNone;
}

}  // namespace served
