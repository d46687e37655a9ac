#include "lane_case.h"

namespace {
lanes::Group make_group(std::uint32_t size) { return lanes::shm_group(size); }
}  // namespace

#include "lane_suite.h"

namespace {

TEST(a_header_that_cannot_be_is_a_protocol_error) {
  for (const int fill : {0x00, 0x7F, 0xFF}) {
    Group group = shm_group(2);
    const std::size_t half = group.regions.front().bytes() / 2;
    std::memset(group.regions.front().data() + half, fill, half);  // rank 1's block
    const Bytes array(40);
    try {
      call(*group.lanes[0], 0, allreduce(10), {{array}, {}}, 0.2);
      CHECK(false);
    } catch (const Error& error) {
      // Zeroed words say that the rank has not come.
      CHECK(error.code() == (fill == 0 ? ErrorCode::kDeadlineExceeded : ErrorCode::kProtocol));
    }
  }
}

TEST(the_memory_of_a_lane_does_not_depend_on_the_arrays) {
  CHECK(shm_lane_bytes(2) <= std::size_t{4} << 20U);
  CHECK_EQUAL(shm_lane_bytes(4) % 4096, 0U);
}

}  // namespace
