# The standard headers that most files include, read once for each target: half of a file's compile time is theirs.
# Files include what they use all the same; clang-tidy reads them without this.

set(distnet_standard_headers
  <algorithm> <array> <atomic> <chrono> <condition_variable> <cstdint> <cstring> <deque> <functional> <map> <memory>
  <mutex> <optional> <span> <string> <string_view> <thread> <utility> <vector>)

# precompile_headers(target [host]): `host` is a target with the same flags whose precompiled headers do for this one.
function(precompile_headers target)
  if(ARGC GREATER 1)
    target_precompile_headers(${target} REUSE_FROM ${ARGV1})
  else()
    target_precompile_headers(${target} PRIVATE ${distnet_standard_headers})
  endif()
endfunction()
