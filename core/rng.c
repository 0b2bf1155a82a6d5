#include "core/rng.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

void rng_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

uint64_t rng_stream(const char *name) {
    return XXH64(name, strlen(name), 0);
}

static void block(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t index) {
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    rng_philox(out, counter, key);
}

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t w[4];
    block(w, seed, stream, index);
    return (uint64_t)w[1] << 32 | w[0];
}

void rng_normal(float *out, uint64_t seed, uint64_t stream, uint64_t first, int64_t count, double scale) {
    /* Block b holds the normals 4b to 4b + 3; a range may start inside one. */
    int64_t done = 0;
    while (done < count) {
        uint64_t index = first + (uint64_t)done;
        uint32_t w[4];
        double normal[4];
        block(w, seed, stream, index / 4);
        for (int pair = 0; pair < 2; pair++) {
            double u = (w[2 * pair] + 0.5) * 0x1p-32, angle = 6.283185307179586476925 * (w[2 * pair + 1] * 0x1p-32);
            double radius = sqrt(-2.0 * log(u));
            normal[2 * pair] = radius * cos(angle);
            normal[2 * pair + 1] = radius * sin(angle);
        }
        for (int i = (int)(index % 4); i < 4 && done < count; i++) out[done++] = (float)(normal[i] * scale);
    }
}
