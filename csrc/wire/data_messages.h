// Requests and replies, which are the same over every transport.
#pragma once

#include <cstdint>

#include "wire/protocol.h"

namespace distnet {

// What a request brings.
enum class RequestKind : std::uint16_t {
  kGradient = 1,  // a push: the shard's elements of one gradient
  kNone = 2,      // a pull
};

enum RequestFlag : std::uint16_t {
  kWantParameters = 1,
  kWantEma = 2,
  kWantSettled = 4,  // settle every push accepted before, except those of a round still open, then reply
  // The parameters may be written into the client's replica (shared memory), or sent ahead of the reply (TCP), while
  // the gradient arrives. In a reply it says that this was done.
  kDeliver = 8,
  kAhead = 16,    // TCP: the payload of this header is that of the reply which follows with the same number
  kDrafted = 32,  // shared memory, in a reply: its parameters are those that the draft word announced
  // In a reply: the status is of the push before this request. It was refused after its reply had left.
  kOfPushBefore = 64,
};

// The optional fields of a request that are set. This version takes none of them and refuses each by name.
enum RequestField : std::uint32_t {
  kHasLearningRate = 1,
  kHasWeight = 2,
};

struct RequestHeader {
  std::uint32_t magic = kMagic;
  RequestKind kind = RequestKind::kNone;
  std::uint16_t flags = 0;
  std::uint64_t number = 0;        // requests of the session, from 1
  std::uint64_t push = 0;          // pushes of the session, from 1; 0 in a pull
  std::uint64_t base_version = 0;  // the version that the gradient was computed from
  std::uint64_t round = 0;         // joins "all": the round this push is for
  std::uint64_t payload_bytes = 0;
  std::uint32_t incarnation = 0;  // the session's, from its welcome
  std::uint32_t fields = 0;       // which of the optional fields are set
  float learning_rate = 0.0F;     // reserved
  float weight = 0.0F;            // reserved
};
static_assert(sizeof(RequestHeader) == 64);

struct ReplyHeader {
  std::uint32_t magic = kMagic;
  std::uint16_t flags = 0;   // of the request
  std::uint16_t status = 0;  // an ErrorCode
  std::uint64_t number = 0;  // of the request
  std::uint64_t version = 0;
  std::uint64_t accepted = 0;   // sequence number of the session's newest accepted push
  std::uint64_t applied = 0;    // sequence number of its newest applied push
  std::uint64_t staleness = 0;  // of push number `applied`
  std::uint64_t round = 0;      // the round that a push would be for now
  std::uint64_t payload_bytes = 0;
  std::uint32_t buffer = 0;     // shared memory: where the parameters lie
  std::uint32_t delivered = 0;  // how many times kDeliveredFloats of them, from the first, were delivered
};
static_assert(sizeof(ReplyHeader) == 72);

}  // namespace distnet
