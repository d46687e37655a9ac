// Vector kernels over float32: copies that tear no float, finite checks, the sum of squares.
//
// Arrays may lie on any 4-byte boundary. `to` and `from` are the same array or do not overlap. Sources and destinations
// may be shared with other threads and processes (see access.h). Same bits on every path.
#pragma once

#include <cstddef>

namespace distnet {

// Copies `count` floats.
void copy(float* to, const float* from, std::size_t count);

// Copies past the cache where the machine can: for more data than the cache holds, whose lines would only be read to be
// overwritten. Such stores heed no release store: end_past_cache() comes between them and the one that publishes.
void copy_past_cache(float* to, const float* from, std::size_t count);
void end_past_cache();

// copy(), or past the cache. Complete: nothing else comes before what publishes it.
void copy_whole(float* to, const float* from, std::size_t count, bool past_cache);

// Copies, and says whether all are finite. A NaN or infinity does not stop the copy.
bool copy_finite(float* to, const float* from, std::size_t count);

// Copies from[i] * scale, and says whether all products are finite.
bool copy_scaled_finite(float* to, const float* from, float scale, std::size_t count);

bool all_finite(const float* from, std::size_t count);

// The sum of squares in float64, in a fixed order that does not depend on the machine.
double sum_of_squares(const float* from, std::size_t count);

}  // namespace distnet
