#include "server/in_flight.h"

#include <new>

#include "server/settlement.h"

namespace distnet {

void PushRecord::begin(Settlement& settlement, const PushEntry& entry, const GradientView& gradient_view,
                       const PushSettings& settings) {
  settlement_ = &settlement;
  *entry_ = entry;
  term_ = gradient_view;
  term_.settings = settings;
  replied_ = false;
  gradient = {};
  gradient.terms = {&term_, 1};
  gradient.rate = term_.settings.learning_rate;
  gradient.group_rates = term_.settings.group_rates;
}

void PushRecord::accept() { settlement_->accept(*entry_); }

bool PushRecord::try_arrived() { return settlement_->try_accept(*entry_); }

void PushRecord::refuse() { settlement_->refuse(*entry_); }

void PushRecord::abstain() { settlement_->abstain(*entry_); }

void PushRecord::on_drafted(std::uint32_t buffer, std::uint64_t elements) {
  settlement_->draft(*entry_, buffer, elements);
}

void PushRecord::on_applied(std::uint64_t version_before) { settlement_->apply(*entry_, version_before); }

void PushRecord::on_refused(bool in_part) { settlement_->refuse_not_finite(*entry_, in_part, replied_); }

InFlight::InFlight(Memory& memory)
    : memory_(memory.allocate(kPlaces * sizeof(PushEntry))), records_(std::make_unique<PushRecord[]>(kPlaces)) {
  for (std::uint32_t place = 0; place < kPlaces; ++place) {
    records_[place].place_ = place;
  }
  for (std::uint32_t pool = 0; pool < kPlaces / kPoolPlaces; ++pool) {
    pools_.push_back(std::make_unique<BitPool>(kPoolPlaces));
  }
}

PushRecord& InFlight::take() {
  while (true) {
    for (std::uint32_t pool = 0; pool < pools_.size(); ++pool) {
      if (const auto bit = pools_[pool]->try_take()) {
        PushRecord& record = records_[pool * kPoolPlaces + *bit];
        record.entry_ = new (memory_.as<PushEntry>() + record.place_) PushEntry();
        record.reset();
        return record;
      }
    }
    pools_.front()->wait_for_free();
  }
}

void InFlight::give_back(PushRecord& record) {
  pools_[record.place_ / kPoolPlaces]->give_back(record.place_ % kPoolPlaces);
}

}  // namespace distnet
