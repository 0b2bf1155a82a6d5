/* Private to the nulls: random numbers of one draw, a worker's memory, and the loop that turns draws into moments. */
#pragma once

#include "diag/nulls_draw.h"
#include "diag/spectrum.h"

#include <stddef.h>

enum { NULLS_MATRICES = 5, NULLS_BUFFERED_NORMALS = 512 };

/* The random numbers of one draw: a function of seed and the draw's number alone. */
typedef struct nulls_source {
    uint64_t seed, stream, next_normal, next_uniform;
    int at;
    float normals[NULLS_BUFFERED_NORMALS];
} nulls_source;

typedef struct nulls_worker {
    nulls_source random;
    double *matrix[NULLS_MATRICES]; /* what a draw works in; the result X is in matrix[0] */
    double *gram;                   /* [side, side] */
    spectrum_work spectrum;
} nulls_worker;

/* How one draw is made. */
typedef struct nulls_sampler {
    /* X [*rows, *cols], row-major, into w->matrix[0]; false: it could not be made. */
    bool (*draw)(nulls_worker *w, const void *user, int *rows, int *cols);
    const void *user;
    int rank;                    /* its eigenvalues */
    int side;                    /* the most that the smaller of rows and cols, and an operand of gram, can be */
    size_t room[NULLS_MATRICES]; /* doubles in each matrix */
} nulls_sampler;

double nulls_normal(nulls_source *s);

/* Chi squared with n >= 0 degrees of freedom. */
double nulls_chi_squared(nulls_source *s, double n);

/* L [m, min(m, n)], the lower trapezoid of an m x n standard Gaussian matrix L Q (Bartlett 1933). */
void nulls_trapezoid(nulls_source *s, double *L, int m, int n);

/* G [count] standard normals. */
void nulls_normals(nulls_source *s, double *G, int64_t count);

/* L [r, r] with L L^T = a^2 L1 L1^T + b^2 L2 L2^T, a^2 + b^2 = 1, ln(a / b) = log_ratio: the triangle of two Gaussian
 * blocks [r, half >= r] side by side. false: not positive definite. */
bool nulls_mixed_triangle(nulls_worker *w, double *L, int r, int half, double log_ratio);

double nulls_squares(const double *x, int64_t n);

/* Moments of `draws` draws; as nulls_ensemble. */
status nulls_sample(const nulls_sampler *sampler, int draws, uint64_t seed, int threads, nulls_watch *watch,
                    nulls_moments *out);
