// The lane over any carrier: what all operations have in common.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "group/carrier.h"
#include "group/lane.h"

namespace distnet {

class CarrierLane final : public Lane {
 public:
  CarrierLane(std::uint32_t rank, std::uint32_t size, std::unique_ptr<Carrier> carrier);

  Result run(std::uint64_t number, const Operation& operation, const Operands& operands, const Deadline& deadline,
             const Interrupt& interrupt) override;
  void abort(const Error& why) override { carrier_->abort(why); }
  std::vector<std::uint32_t> awaited() const override { return carrier_->awaited(); }

 private:
  struct Done {
    Result result;
    std::string misfit;  // why the caller's outputs could not take the result; empty when they could
  };

  Done operate(const Header& own, const Operands& operands, const Patience& patience);
  Done prepare(std::span<const Header> headers, const Operands& operands, MutablePieces& output) const;
  std::vector<Header> read_headers(const Header& own, std::span<const std::byte> encoded,
                                   std::span<const Opening> openings) const;

  const std::uint32_t rank_;
  const std::uint32_t size_;
  const std::unique_ptr<Carrier> carrier_;
  std::optional<std::uint64_t> joined_since_;  // the number at which this rank first did not contribute
};

}  // namespace distnet
