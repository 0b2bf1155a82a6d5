/* exp for float vectors: inlined into loops that the compiler then vectorizes, which it does not do with libm's. What
 * it must not meet for that: a branch, a conversion to int, more than one float made from bits at a time. */
#pragma once

#include <stdint.h>
#include <string.h>

/* exp(x) to 2 ulp for x in [-87.3, 88.3]; 0 below (also for -inf), inf above, NaN for NaN.
 * exp(x) = 2^n exp(r), n = round(x/ln 2), |r| <= ln(2)/2, exp(r) by its Taylor polynomial of degree 7. */
static inline float vector_exp(float x) {
    const float low = -87.3f, high = 88.3f,
                integers = 0x1.8p23f; /* floats around the last are integers, one ulp apart */
    float clamped = x > high ? high : x;
    clamped = clamped < low ? low : clamped;
    float shifted = clamped * 1.44269504f + integers, n = shifted - integers;
    float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits; /* n + 127 moves into the exponent, the rest out at the top */
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    float y = p * scale; /* NaN where x is */
    y = x < low ? 0.0f : y;
    return x > high ? __builtin_inff() : y;
}
