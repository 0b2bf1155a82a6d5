/* exp for float vectors: inlined into loops so that the compiler vectorizes them, which it does not do with libm's. */
#pragma once

#include <stdint.h>
#include <string.h>

/* exp(x) to 2 ulp for x in [-87, 88]; 0 below (also for -inf), inf above, NaN for NaN.
 * exp(x) = 2^n exp(r), n = round(x/ln 2), |r| <= ln(2)/2, exp(r) by its Taylor polynomial of degree 7. */
static inline float vector_exp(float x) {
    float clamped = x < -87.3f ? -87.3f : x > 88.7f ? 88.7f : x;
    float n = __builtin_rintf(clamped * 1.44269504f);
    float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    /* 2^128 is no float: scale by 2^(n-1), then by 2. */
    int32_t bits = ((int32_t)n + 126) << 23;
    float half;
    memcpy(&half, &bits, sizeof half);
    float y = p * half * 2.0f;
    y = x < -87.3f ? 0.0f : y;
    y = x > 88.7f ? __builtin_inff() : y;
    return x != x ? x : y;
}
