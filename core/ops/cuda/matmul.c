/* Products of the CUDA table by cuBLASLt. A row-major matrix is the column-major transpose of itself, so
 * y = op(a) op(b) is asked for as yt = op(b)t op(a)t.
 *
 * For each new kind of product (shape, strides, types, alignment) one algorithm is chosen and kept. Small products take
 * the heuristic's first choice. Of large ones in bf16 its first few are tried, the first time such a product is asked
 * for, and the fastest is taken of those whose result has the first one's bits: so the choice, which depends on the
 * moment, is never seen in a result, and the same run gives the same bits. (They differ in their tiles, hardly ever in
 * the order of a sum.) What is added to y cannot be tried twice: such a product takes the choice of its twin that
 * overwrites. Sums over a split inner dimension are fp32.
 *
 * Where a bf16 y is added to, cuBLAS's Hopper kernels round the product to bf16 and then the sum (measured; no setting
 * changes it): an error of up to 2^-8 (|product| + |sum|), as from a product and an addition of two calls. Where y is
 * fp32, as weight gradients are, nothing is rounded to bf16. */
#include "core/ops/cuda/matmul.h"

#include "core/ops/cuda/kernels.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

enum { PLANS = 1024, WORKSPACE_BYTES = 32 << 20, MOST_ALIGNMENT = 256 };

/* Algorithms that are tried, runs that are timed of each, and the least work that is worth it. */
enum { CANDIDATES = 8, RUNS = 4 };
static const double LARGE_FLOPS = 1e9;

/* A later candidate must be faster than this part of an earlier one's time. */
static const double FASTER = 0.99;

/* What the choice depends on. Compared as bytes: zero it before filling. */
typedef struct product_key {
    int64_t m, n, k, lda, ldb, ldy;
    int32_t align_a, align_b, align_y;
    uint8_t type, y_type, transpose_a, transpose_b, adds, pad[7];
} product_key;

typedef struct product_plan {
    product_key key;
    bool used;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, y;
    cublasLtMatmulDescOpaque_t product_space;
    cublasLtMatrixLayoutOpaque_t a_space, b_space, y_space;
    cublasLtMatmulAlgo_t algorithm;
} product_plan;

typedef struct cuda_plans {
    product_plan at[PLANS]; /* open addressing */
} cuda_plans;

status cuda_matmul_open(cuda_context *c) {
    c->plans = calloc(1, sizeof *c->plans);
    if (!c->plans) return status_fail(STATUS_INTERNAL, "out of memory");
    cublasStatus_t code = cublasLtCreate(&c->blas);
    if (code != CUBLAS_STATUS_SUCCESS)
        return status_fail(STATUS_CONFIG, "GPU %d: cuBLAS does not start: %s", c->device,
                           cublasLtGetStatusString(code));
    c->workspace_bytes = WORKSPACE_BYTES;
    cudaError_t error = cudaMalloc(&c->workspace, c->workspace_bytes);
    if (error != cudaSuccess)
        return status_fail(STATUS_CONFIG, "GPU %d: %d MiB of workspace: %s", c->device, WORKSPACE_BYTES >> 20,
                           cudaGetErrorString(error));
    return STATUS_OK;
}

void cuda_matmul_close(cuda_context *c) {
    if (c->blas) cublasLtDestroy(c->blas);
    cudaFree(c->workspace);
    free(c->plans);
}

static bool blas_check(ops *o, cublasStatus_t code, const product_key *k) {
    if (code == CUBLAS_STATUS_SUCCESS) return true;
    if (o->first_error == STATUS_OK)
        o->first_error = status_fail(STATUS_INTERNAL, "GPU %d: product of %ld x %ld x %ld: %s", cuda_of(o)->device,
                                     (long)k->m, (long)k->n, (long)k->k, cublasLtGetStatusString(code));
    return false;
}

static cudaDataType_t cuda_type(dtype type) {
    return type == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static int32_t alignment(const void *data) {
    int32_t bytes = MOST_ALIGNMENT;
    while ((uintptr_t)data % (uintptr_t)bytes) bytes /= 2;
    return bytes;
}

static product_key key_of(tensor y, tensor a, bool transpose_a, tensor b, bool transpose_b, float beta) {
    product_key key;
    memset(&key, 0, sizeof key);
    key.m = y.rows;
    key.n = y.cols;
    key.k = transpose_a ? a.rows : a.cols;
    key.lda = a.ld;
    key.ldb = b.ld;
    key.ldy = y.ld;
    key.align_a = alignment(a.data);
    key.align_b = alignment(b.data);
    key.align_y = alignment(y.data);
    key.type = (uint8_t)a.type;
    key.y_type = (uint8_t)y.type;
    key.transpose_a = transpose_a;
    key.transpose_b = transpose_b;
    key.adds = beta != 0;
    return key;
}

/* The key's place: its own, an empty one, or, where the table is full, one to overwrite. */
static product_plan *find_plan(cuda_plans *plans, const product_key *key) {
    uint64_t hash = 1469598103934665603u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *key; i++) hash = (hash ^ ((const uint8_t *)key)[i]) * 1099511628211u;
    product_plan *home = &plans->at[hash % PLANS];
    for (uint64_t step = 0; step < PLANS; step++) {
        product_plan *p = &plans->at[(hash + step) % PLANS];
        if (!p->used || memcmp(&p->key, key, sizeof *key) == 0) return p;
    }
    return home;
}

static cublasStatus_t set_int(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name, int32_t value) {
    return cublasLtMatmulDescSetAttribute(desc, name, &value, sizeof value);
}

static cublasStatus_t limit(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t name,
                            uint32_t value) {
    return cublasLtMatmulPreferenceSetAttribute(preference, name, &value, sizeof value);
}

/* Over how many parts the inner dimension is split. */
static int32_t split_of(const cublasLtMatmulAlgo_t *a) {
    int32_t split = 0;
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split, NULL);
    return split;
}

static void log_plan(const product_key *k, const cublasLtMatmulHeuristicResult_t *choice) {
    int32_t id = 0;
    uint32_t tile = 0, stages = 0;
    cublasLtMatmulAlgoConfigGetAttribute(&choice->algo, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, NULL);
    cublasLtMatmulAlgoConfigGetAttribute(&choice->algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile, NULL);
    cublasLtMatmulAlgoConfigGetAttribute(&choice->algo, CUBLASLT_ALGO_CONFIG_STAGES_ID, &stages, sizeof stages, NULL);
    log_debug("product %ldx%ldx%ld ld %ld %ld %ld %s%s %s->%s%s: algorithm %d, tile %u, stages %u, split %d, waves "
              "%.2f, workspace %zu",
              (long)k->m, (long)k->n, (long)k->k, (long)k->lda, (long)k->ldb, (long)k->ldy, k->transpose_a ? "T" : "N",
              k->transpose_b ? "T" : "N", k->type == DTYPE_BF16 ? "bf16" : "fp32",
              k->y_type == DTYPE_BF16 ? "bf16" : "fp32", k->adds ? " adds" : "", id, tile, stages,
              split_of(&choice->algo), (double)choice->wavesCount, choice->workspaceSize);
}

/* What the heuristic proposes for a plan whose descriptors are set, in its order. */
typedef struct proposals {
    cublasLtMatmulHeuristicResult_t list[CANDIDATES];
    int count;
} proposals;

static cublasStatus_t ask(cuda_context *c, product_plan *p, int most, proposals *out) {
    cublasLtMatmulPreferenceOpaque_t space;
    cublasLtMatmulPreference_t preference = &space;
    uint64_t workspace = c->workspace_bytes;
    cublasStatus_t code = cublasLtMatmulPreferenceInit(preference);
    if (code == CUBLAS_STATUS_SUCCESS)
        code = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                    sizeof workspace);
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t value;
    } limits[] = {
        /* cuBLAS's A is our b */
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)p->key.align_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)p->key.align_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)p->key.align_y},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)p->key.align_y},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits && code == CUBLAS_STATUS_SUCCESS; i++)
        code = limit(preference, limits[i].name, limits[i].value);
    if (code != CUBLAS_STATUS_SUCCESS) return code;

    code = cublasLtMatmulAlgoGetHeuristic(c->blas, p->product, p->b, p->a, p->y, p->y, preference, most, out->list,
                                          &out->count);
    return code == CUBLAS_STATUS_SUCCESS && out->count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : code;
}

/* The descriptors. */
static cublasStatus_t describe(product_plan *p, const product_key *k) {
    p->key = *k;
    p->product = &p->product_space;
    p->a = &p->a_space;
    p->b = &p->b_space;
    p->y = &p->y_space;
    cudaDataType_t type = cuda_type((dtype)k->type), y_type = cuda_type((dtype)k->y_type);
    /* COMPUTE_32F is fp32 for fp32 operands: TF32 has a code of its own. */
    cublasStatus_t code = cublasLtMatmulDescInit(p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (code == CUBLAS_STATUS_SUCCESS)
        code = set_int(p->product, CUBLASLT_MATMUL_DESC_TRANSA, k->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (code == CUBLAS_STATUS_SUCCESS)
        code = set_int(p->product, CUBLASLT_MATMUL_DESC_TRANSB, k->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    /* column-major rows are our columns */
    uint64_t a_rows = (uint64_t)(k->transpose_a ? k->m : k->k), a_cols = (uint64_t)(k->transpose_a ? k->k : k->m);
    uint64_t b_rows = (uint64_t)(k->transpose_b ? k->k : k->n), b_cols = (uint64_t)(k->transpose_b ? k->n : k->k);
    if (code == CUBLAS_STATUS_SUCCESS) code = cublasLtMatrixLayoutInit(p->a, type, a_rows, a_cols, k->lda);
    if (code == CUBLAS_STATUS_SUCCESS) code = cublasLtMatrixLayoutInit(p->b, type, b_rows, b_cols, k->ldb);
    if (code == CUBLAS_STATUS_SUCCESS)
        code = cublasLtMatrixLayoutInit(p->y, y_type, (uint64_t)k->n, (uint64_t)k->m, k->ldy);
    return code;
}

/* One product by a plan: y = op(a) op(b) + beta y. */
typedef struct product {
    const product_plan *plan;
    void *y;
    const void *a, *b;
    float beta;
} product;

static cublasStatus_t run(cuda_context *c, const product *x, const cublasLtMatmulAlgo_t *algorithm) {
    static const float one = 1;
    const product_plan *p = x->plan;
    return cublasLtMatmul(c->blas, p->product, &one, x->b, p->b, x->a, p->a, &x->beta, x->y, p->y, x->y, p->y,
                          algorithm, c->workspace, c->workspace_bytes, c->stream);
}

/* Runs the product by that algorithm; seconds of a run and a checksum of the result's bits. False where it cannot. */
static bool try(ops *o, const product *x, const cublasLtMatmulAlgo_t *algorithm, double *seconds, uint64_t *bits) {
    cuda_context *c = cuda_of(o);
    const product_key *k = &x->plan->key;
    tensor y = {.data = x->y, .type = (dtype)k->y_type, .rows = k->m, .cols = k->n, .ld = k->ldy};
    ops_mark from = {0}, to = {0};
    if (run(c, x, algorithm) != CUBLAS_STATUS_SUCCESS) return false; /* the first one may load code */
    o->mark(o, &from, NULL);
    for (int i = 0; i < RUNS; i++) run(c, x, algorithm);
    o->mark(o, &to, NULL);
    *seconds = o->mark_span_s(o, &from, &to) / RUNS;
    o->mark_release(o, &from);
    o->mark_release(o, &to);
    cuda_check(o, launch_checksum(c->scratch, y, c->stream), "checksum");
    o->download(o, bits, c->scratch, sizeof *bits);
    return o->first_error == STATUS_OK;
}

/* The place in the list of the fastest whose result has the first one's bits. */
static int fastest(ops *o, const product *x, const proposals *found) {
    double least_s = 0;
    uint64_t want = 0;
    int best = 0;
    for (int i = 0; i < found->count; i++) {
        const cublasLtMatmulAlgo_t *algorithm = &found->list[i].algo;
        double seconds;
        uint64_t bits;
        if (split_of(algorithm) != split_of(&found->list[0].algo)) continue;
        if (!try(o, x, algorithm, &seconds, &bits)) {
            if (i == 0) return 0;
            continue;
        }
        if (i == 0) want = bits;
        log_debug("  proposal %d: %.1f us%s", i, 1e6 * seconds, bits == want ? "" : ", other bits");
        if (i > 0 && (bits != want || seconds > FASTER * least_s)) continue;
        least_s = seconds;
        best = i;
    }
    return best;
}

/* The used plan of the same product without `adds`, or NULL. */
static const product_plan *twin_of(cuda_plans *plans, const product_key *key) {
    product_key twin = *key;
    twin.adds = 0;
    const product_plan *p = find_plan(plans, &twin);
    return key->adds && p->used && memcmp(&p->key, &twin, sizeof twin) == 0 ? p : NULL;
}

static cublasStatus_t make_plan(ops *o, product_plan *p, const product_key *k, product *x) {
    cuda_context *c = cuda_of(o);
    const product_plan *twin = twin_of(c->plans, k);
    bool tries = k->type == DTYPE_BF16 && !k->adds && 2.0 * (double)k->m * (double)k->n * (double)k->k >= LARGE_FLOPS;
    proposals found;
    cublasStatus_t code = describe(p, k);
    if (code == CUBLAS_STATUS_SUCCESS && !twin) code = ask(c, p, tries ? CANDIDATES : 1, &found);
    if (code != CUBLAS_STATUS_SUCCESS) return code;
    int best = twin || found.count == 1 ? 0 : fastest(o, x, &found);
    p->algorithm = twin ? twin->algorithm : found.list[best].algo;
    if (!twin) log_plan(k, &found.list[best]);
    p->used = true;
    return CUBLAS_STATUS_SUCCESS;
}

void cuda_matmul(ops *o, tensor y, tensor a, bool transpose_a, tensor b, bool transpose_b, float beta) {
    cuda_context *c = cuda_of(o);
    product_key key = key_of(y, a, transpose_a, b, transpose_b, beta);
    assert(y.rows == (transpose_a ? a.cols : a.rows));
    assert(y.cols == (transpose_b ? b.rows : b.cols));
    assert(key.k == (transpose_b ? b.cols : b.rows));
    assert(a.type == b.type && (y.type == a.type || y.type == DTYPE_F32));
    if (key.m == 0 || key.n == 0) return;
    product_plan *p = find_plan(c->plans, &key);
    product x = {.plan = p, .y = y.data, .a = a.data, .b = b.data, .beta = beta};
    if (!p->used || memcmp(&p->key, &key, sizeof key) != 0)
        if (!blas_check(o, make_plan(o, p, &key, &x), &key)) return;
    if (blas_check(o, run(c, &x, &p->algorithm), &key)) o->flops += 2.0 * (double)key.m * (double)key.n * (double)key.k;
}
