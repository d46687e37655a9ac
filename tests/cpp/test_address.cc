#include "base/error.h"
#include "check.h"
#include "served_case.h"
#include "transport/address.h"

namespace {

using namespace distnet;
using served::code_of;

std::string reached(const std::string& given, const std::string& directory) {
  std::string text;
  for (const Address& address : as_reached(parse_address(given), parse_addresses(directory))) {
    text += text.empty() ? "" : ",";
    text += address.text();
  }
  return text;
}

}  // namespace

TEST(a_client_keeps_to_the_host_that_it_was_given) {
  CHECK_EQUAL(reached("tcp://host-a:7400", "tcp://0.0.0.0:7400,tcp://0.0.0.0:7401"),
              "tcp://host-a:7400,tcp://host-a:7401");
  CHECK_EQUAL(reached("tcp://host-a:7400", "tcp://10.0.0.5:7400,tcp://10.0.0.5:7401"),
              "tcp://host-a:7400,tcp://host-a:7401");
  CHECK_EQUAL(reached("tcp://[2001:db8::1]:1", "tcp://[::]:1,tcp://[::]:2"),
              "tcp://[2001:db8::1]:1,tcp://[2001:db8::1]:2");
}

TEST(a_mapped_port_of_shard_0_is_the_one_that_was_given) {
  CHECK_EQUAL(reached("tcp://gateway:17400", "tcp://container:7400"), "tcp://gateway:17400");
}

TEST(shards_that_are_said_to_be_on_other_hosts_are_looked_for_there) {
  CHECK_EQUAL(reached("tcp://a:1", "tcp://one:1,tcp://two:2,tcp://127.0.0.1:3"), "tcp://a:1,tcp://two:2,tcp://a:3");
}

TEST(names_within_a_host_stay) {
  CHECK_EQUAL(reached("shm://s", "shm://s,shm://s.1"), "shm://s,shm://s.1");
  CHECK_EQUAL(reached("shm://s", "tcp://0.0.0.0:1"), "tcp://0.0.0.0:1");
}

TEST(what_is_no_address_is_refused) {
  for (const char* const text : {"", "host:1", "tcp://", "tcp://host", "tcp://:1", "tcp://host:", "tcp://host:70000",
                                 "tcp://host:1x", "udp://host:1", "shm://a b"}) {
    CHECK(code_of([&] { parse_address(text); }) == ErrorCode::kConfig);
  }
}
