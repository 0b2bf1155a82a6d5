/* Products of fp32 matrices on CPUs. Where the CPU has AVX-512 they are computed here, else by OpenBLAS. OpenBLAS
 * copies both operands element by element before it multiplies, which shows in products as thin as a model's (K of a
 * few hundred); here the left one is read where it lies, and a second thread costs no more than a barrier.
 *
 * With AVX-512 each element is summed in one order, k upwards in blocks of 256, whatever the number of threads and the
 * element's place. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* op(x) of a row-major matrix x: element (i, j) is data[i row + j col]. */
typedef struct product_operand {
    const float *data;
    int64_t row, col; /* one of them is 1 */
} product_operand;

/* y [m, n] (rows ld apart) = a [m, k] b [k, n] + beta y, by all OpenMP threads. With beta = 0 what y held does not
 * count. */
void product(float *y, int64_t ld, int64_t m, int64_t n, int64_t k, product_operand a, product_operand b, float beta);

/* A right operand that several products of one thread share, b [k, n], prepared once. */
typedef struct product_right {
    product_operand b;
    const float *panels; /* NULL: OpenBLAS reads b itself */
    int64_t k;
} product_right;

/* Floats that it needs. */
size_t product_room(int64_t k, int64_t n);

/* room: so many floats, on 64 bytes. Both room and b are needed as long as the result is. */
product_right product_prepare(float *room, product_operand b, int64_t k, int64_t n);

/* y [m, n] = a [m, k] b + beta y on this thread, with the first n columns and k rows of b. */
void product_by(float *y, int64_t ld, int64_t m, int64_t n, int64_t k, product_operand a, const product_right *b,
                float beta);
