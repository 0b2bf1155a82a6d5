/* A library to preload into the ranks of a job: when the file that NAN_FILE names appears, the next matrix product by
 * OpenBLAS (core/ops/cpu/product.h) of the rank that it holds the number of gets a NaN, once; the file is then gone. */
#include <cblas.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int is_asked(void) {
    const char *path = getenv("NAN_FILE"), *mine = getenv("OMPI_COMM_WORLD_RANK");
    int rank = -1;
    FILE *f = path && mine ? fopen(path, "r") : NULL;
    if (!f) return 0;
    if (fscanf(f, "%d", &rank) != 1) rank = -1;
    fclose(f);
    return rank == atoi(mine) && unlink(path) == 0;
}

void cblas_sgemm(const enum CBLAS_ORDER order, const enum CBLAS_TRANSPOSE ta, const enum CBLAS_TRANSPOSE tb,
                 const blasint m, const blasint n, const blasint k, const float alpha, const float *a,
                 const blasint lda, const float *b, const blasint ldb, const float beta, float *c, const blasint ldc) {
    static void (*real)(enum CBLAS_ORDER, enum CBLAS_TRANSPOSE, enum CBLAS_TRANSPOSE, blasint, blasint, blasint, float,
                        const float *, blasint, const float *, blasint, float, float *, blasint);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "cblas_sgemm");
    real(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    if (is_asked()) c[0] = NAN;
}
