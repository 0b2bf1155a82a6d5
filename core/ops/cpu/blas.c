/* Which kernels OpenBLAS takes. It decides when it is loaded, by a list of processors that ends with those of its day:
 * on a newer one it falls back to SSE3, at a fourth of the speed (Debian 12's 0.3.21 on a Xeon of 2023: 11 GFLOP/s a
 * core in float64 where its own AVX-512 kernels do 45). */
#include "core/ops/ops.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char VARIABLE[] = "OPENBLAS_CORETYPE", FALLBACK[] = "Prescott";

const char *ops_cpu_blas(void) {
    return openblas_get_config();
}

/* The newest family of kernels that every OpenBLAS since 0.3 has and this processor runs; NULL: none beyond the
 * fallback. */
static const char *best_kernels(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return "SKYLAKEX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "HASWELL";
#endif
    return NULL;
}

void ops_cpu_begin(char **argv) {
    const char *best = best_kernels();
    if (!best || getenv(VARIABLE) || strcmp(openblas_get_corename(), FALLBACK) != 0) return;
    if (setenv(VARIABLE, best, 1) == 0) execv("/proc/self/exe", argv);
    /* Where that cannot be done the program goes on: slower, and right. */
}
