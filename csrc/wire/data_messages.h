// Requests and replies, which are the same over every transport.
#pragma once

#include <cstdint>

#include "wire/protocol.h"

namespace distnet {

// What a request brings.
enum class RequestKind : std::uint8_t {
  kGradient = 1,    // a push: the shard's elements of one gradient
  kNone = 2,        // a pull
  kAbstention = 3,  // a push that brings no gradient: it takes a number, and a round does not wait for its worker
  kChange = 4,      // a push: the shard's elements of a change of the parameters, sent like a gradient
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

// The optional fields of a request that are set; only a gradient has any.
enum RequestField : std::uint8_t {
  kHasLearningRate = 1,
  kHasWeight = 2,
  kHasGroupRates = 4,  // beside the header: a float64 for each group of the welcome, NaN for one without
};

struct RequestHeader {
  std::uint32_t magic = kMagic;
  RequestKind kind = RequestKind::kNone;
  std::uint8_t fields = 0;  // which of the optional fields are set
  std::uint16_t flags = 0;
  std::uint64_t number = 0;        // requests of the session, from 1
  std::uint64_t push = 0;          // pushes of the session, abstentions included, from 1; 0 in a pull
  std::uint64_t base_version = 0;  // the version that the gradient was computed from
  std::uint64_t round = 0;         // joins "all": the round this push is for
  std::uint64_t payload_bytes = 0;
  std::uint32_t incarnation = 0;  // the session's, from its welcome
  float weight = 0.0F;            // joins "all": of the gradient in the mean of its round
  double learning_rate = 0.0;     // of the update, in place of the one that was set and of the schedule's
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
