// Vector kernels over float32: copies that tear no float, finite checks, the sum of squares.
//
// Arrays may start on any 4-byte boundary. `to` and `from` are the same array or do not overlap. Both may be shared
// with other threads and processes (see access.h). Every instruction set gives the same bits.
#pragma once

#include <cstddef>

namespace distnet {

// Copies `count` floats.
void copy(float* to, const float* from, std::size_t count);

// Copies past the cache where the machine can. It is for more data than the cache holds, whose lines would only be read
// to be overwritten. A release store does not order these stores: call end_past_cache() before the store that publishes
// them.
void copy_past_cache(float* to, const float* from, std::size_t count);
void end_past_cache();

// Calls copy() or copy_past_cache(). The copy is complete on return: a release store publishes it.
void copy_whole(float* to, const float* from, std::size_t count, bool past_cache);

// Copies, and returns whether all values are finite. A NaN or infinity does not stop the copy.
bool copy_finite(float* to, const float* from, std::size_t count);

// Copies from[i] * scale, and returns whether all products are finite.
bool copy_scaled_finite(float* to, const float* from, float scale, std::size_t count);

bool all_finite(const float* from, std::size_t count);

// Returns the sum of squares in float64, added in a fixed order that does not depend on the machine.
double sum_of_squares(const float* from, std::size_t count);

}  // namespace distnet
