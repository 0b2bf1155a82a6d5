/* Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror & Shaw, SC 2011). A value is a pure function of
 * (seed, stream, index), so any rank can produce any element of a tensor without producing the others. */
#pragma once

#include <stdint.h>

/* One Philox4x32-10 block: out = f(counter, key). */
void rng_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/* A stream number for a name (a parameter, "data order", ...). */
uint64_t rng_stream(const char *name);

/* Uniform 64-bit integer at index of (seed, stream). */
uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);

/* Standard normals (Box-Muller in double) for indices [first, first + count) of (seed, stream), times scale, into out.
 */
void rng_normal(float *out, uint64_t seed, uint64_t stream, uint64_t first, int64_t count, double scale);
