/* Which product null a map has (docs/design.md section 6.4): its shape, its asymptotic edge, and the variance ratios
 * of a snapshot that it is taken at. Lengths as in diag/nulls_draw.h. */
#pragma once

#include "comm/snapshot.h"
#include "core/config.h"
#include "diag/maps.h"
#include "diag/nulls_draw.h"

/* The shape of the matrix's null. */
void nulls_shape_of(const config *c, const maps_matrix *m, nulls_shape *out);

/* Upper edge of lambda / mean lambda for a product of independent Gaussian matrices with these inner and outer
 * dimensions, in any order: min_{z>0} (1/z) prod_j (1 + r z / dim_j), r the least (S-transforms: Mueller 2002;
 * Penson & Zyczkowski 2011). */
double nulls_chain_edge(const int *dims, int count);

/* m eigenvalues of mean t that follow Marchenko-Pastur with ratio c; c = 0: all are t. */
typedef struct nulls_block {
    double m, t, c;
} nulls_block;

/* The same for a chain whose middle is block diagonal: dims are those outside the blocks. With phi(u) = sum_b m_b
 * psi(u t_b, c_b) and r = min(sum m, dims): min_u prod_j (dim_j + phi(u)) / u * r / (prod dim_j * sum m t), where
 * psi(u, c) = (1 - u (1 + c) - sqrt((1 - u (1 + c))^2 - 4 c u^2)) / (2 c u), or u / (1 - u) at c = 0. */
double nulls_block_edge(const int *dims, int dim_count, const nulls_block *blocks, int block_count);

/* The edge of a shape at these log ratios. A channel-form block takes the product of both; a mixed chain none: its
 * edge is that of equal variances. */
double nulls_edge(const nulls_shape *s, const double *log_ratio);

/* Log ratios of all heads of a layer, [H + 1] each, the last those of the layer's sum; from the mean squares of the
 * leaf weights and gains. Decoupled: query[h] = ln rms(W_Qr^h)/rms(W_Qn^h), key[h] = ln of the same for the entries of
 * the rope and the content keys; prerope with source key: key[h] = ln rms(W_DK) rms(W_K) / (rms(W_DV) rms(W_V)). NaN
 * where there is none. false: the snapshot lacks a tensor of the layer. */
bool nulls_layer_ratios(const config *c, const snapshot *s, int layer, double *query, double *key);
