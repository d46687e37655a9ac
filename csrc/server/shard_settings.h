// What a shard is told at its start.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/tuning.h"
#include "optim/update_rule.h"
#include "server/policy.h"
#include "sessions/proof.h"
#include "wire/format.h"

namespace distnet {

struct ShardSettings {
  UpdatePolicy policy;
  OptimizerSpec optimizer;
  ScheduleSpec schedule;
  double clip_value = 0.0;
  double clip_norm = 0.0;  // by the client, over its whole gradient
  double ema_decay = 0.0;  // 0: no moving average
  // Settings of the tensors whose names match a shell pattern; the first that matches counts.
  struct Group {
    std::string pattern;
    double rate_multiplier = 1.0;
    std::optional<double> weight_decay;           // none: the optimizer's own
    std::map<std::string, double> settings = {};  // in place of the optimizer's own
  };
  std::vector<Group> groups;
  std::uint32_t shard = 0;  // this one's place among `shards`; 0 admits clients and leads the rounds
  std::uint32_t shards = 1;
  FormatSpec push_format;  // how gradients and parameters travel over TCP
  FormatSpec pull_format;
  JobSecret job_secret;                // by which the shards of one job know each other
  std::uint64_t owner = 0;             // by which the server's owner is known; 0: it has none
  bool optimizer_from_client = false;  // who brings the model brings the optimizer, unless it brings none
  std::string about;                   // for clients, as the owner writes it: of the server
  std::string about_optimizer;         // and of its optimizer
  bool model_from_owner = false;       // only the owner brings the model
  double reconnect_timeout_s = 0.0;    // that a session whose TCP connection broke may come back in
  Tuning tuning;

  bool joins_all() const { return policy.joins == Joins::kAll; }
};

}  // namespace distnet
