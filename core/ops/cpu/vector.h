/* exp for float vectors: inlined into loops so that the compiler vectorizes them, which it does not do with libm's. */
#pragma once

#include <stdint.h>
#include <string.h>

/* exp(x) to 2 ulp for x in [-87, 88]; 0 below (also for -inf), inf above, NaN for NaN.
 * exp(x) = 2^n exp(r), n = round(x/ln 2), |r| <= ln(2)/2, exp(r) by its Taylor polynomial of degree 7. */
static inline float vector_exp(float x) {
    float clamped = x > -87.3f ? (x < 88.7f ? x : 88.7f) : -87.3f; /* NaN too: no undefined conversion below */
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
    /* 2^n in two factors: n = 128 and n = -127 have no normal float. */
    int32_t whole = (int32_t)n, part = whole / 2;
    uint32_t bits[2] = {(uint32_t)(part + 127) << 23, (uint32_t)(whole - part + 127) << 23};
    float scale[2];
    memcpy(scale, bits, sizeof scale);
    float y = p * scale[0] * scale[1];
    y = x < -87.3f ? 0.0f : y;
    y = x > 88.7f ? __builtin_inff() : y;
    return x != x ? x : y;
}
