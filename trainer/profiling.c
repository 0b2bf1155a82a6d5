/* `bulkhead train --profile N`: where the time of N steps goes on compute rank 0 and how near its phases come to what
 * the device can do, printed and recorded (docs/design.md section 8). */
#include "trainer/job.h"

#include "core/log.h"
#include "core/rng.h"
#include "trainer/events.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The first steps allocate what later ones use again, and choose product algorithms. */
enum { WARM_UP_STEPS = 2 };

/* What the ceilings are measured with: products of square matrices and copies, the fastest of some. A CPU's are
 * smaller, but larger than its caches. */
enum {
    ROUNDS = 10,
    CPU_SIDE = 1024,
    CUDA_SIDE = 4096,
    CPU_COPY_BYTES = 64 << 20,
    CUDA_COPY_BYTES = 256 << 20,
    PATTERN = 1 << 20
};

typedef struct ceilings {
    int64_t side, copy_bytes;
    double flops_per_s, bytes_per_s; /* read and written; NAN where there was no memory to measure it */
} ceilings;

struct profiling {
    profile profile;
    ceilings ceilings;
    double started_s; /* of what was started of tensor- and data-parallel collectives */
};

/* ---------------------------------------------------------------- the device's ceilings */

static void product(ops *o, const tensor t[3]) {
    o->matmul(o, t[0], t[1], false, t[2], true, 0.0f);
}

static void copy(ops *o, const tensor t[3]) {
    o->copy(o, t[0], t[1]);
}

/* Normal numbers, PATTERN of them over and over: GPUs draw less power, and run faster, on zeros. */
static void fill(ops *o, tensor t) {
    size_t bytes = PATTERN * sizeof(float);
    float *numbers = malloc(bytes), *pattern = o->alloc(o, bytes);
    if (numbers && pattern) {
        rng_normal(numbers, 1, 1, 0, PATTERN, 1);
        o->upload(o, pattern, numbers, bytes);
        for (int64_t at = 0; at + PATTERN <= t.rows * t.cols; at += PATTERN)
            o->cast(o, (char *)t.data + (size_t)at * dtype_bytes(t.type), pattern, PATTERN);
        o->sync(o);
    }
    free(numbers);
    if (pattern) o->release(o, pattern);
}

/* Seconds of the fastest run over three tensors of that shape, NAN without memory for them. */
static double fastest_s(ops *o, void (*work)(ops *o, const tensor t[3]), int64_t rows, int64_t cols) {
    tensor t[3];
    ops_mark from = {0}, to = {0};
    double least = NAN;
    bool has_memory = true;
    for (int i = 0; i < 3; i++) {
        void *data = o->alloc(o, (size_t)(rows * cols) * dtype_bytes(o->activation));
        t[i] = tensor_make(data, o->activation, rows, cols);
        has_memory = has_memory && data;
        if (data) fill(o, t[i]);
    }
    for (int i = 0; i <= ROUNDS && has_memory; i++) {
        o->mark(o, &from, NULL);
        work(o, t);
        o->mark(o, &to, NULL);
        double seconds = o->mark_span_s(o, &from, &to);
        if (i > 0) least = fmin(least, seconds); /* the first one warms up */
    }
    o->mark_release(o, &from);
    o->mark_release(o, &to);
    for (int i = 0; i < 3; i++)
        if (t[i].data) o->release(o, t[i].data);
    return least;
}

static ceilings measure(ops *o) {
    bool gpu = o->context != NULL;
    ceilings c = {.side = gpu ? CUDA_SIDE : CPU_SIDE, .copy_bytes = gpu ? CUDA_COPY_BYTES : CPU_COPY_BYTES};
    double side = (double)c.side;
    int64_t cols = c.copy_bytes / c.side / (int64_t)dtype_bytes(o->activation);
    c.flops_per_s = 2 * side * side * side / fastest_s(o, product, c.side, c.side);
    c.bytes_per_s = 2 * (double)c.copy_bytes / fastest_s(o, copy, c.side, cols);
    return c;
}

/* ---------------------------------------------------------------- the table */

/* The phases in the order of rows; communication exposed is made of two. */
static const profile_phase listed[] = {PROFILE_EMBEDDING,  PROFILE_PROJECTIONS, PROFILE_ATTENTION,
                                       PROFILE_MLP,        PROFILE_HEAD,        PROFILE_OPTIMIZER,
                                       PROFILE_COLLECTIVE, PROFILE_SNAPSHOT,    PROFILE_IDLE};

/* The rows behind them. */
enum { LISTED = sizeof listed / sizeof *listed, STEP = LISTED, HIDDEN, CEILING, ROWS };

/* Of w, whose rates come from so many seconds, a step on average; NAN: there is none. c: NULL for collectives, of which
 * nothing measures a ceiling. */
static diag_profile row(const char *phase, profile_work w, double rate_s, const profile *p, const ceilings *c) {
    double steps = (double)p->steps;
    diag_profile r = {.steps = p->steps, .ms = 1e3 * w.seconds / steps, .share = w.seconds / p->wall_s, .ratio = NAN};
    snprintf(r.phase, sizeof r.phase, "%s", phase);
    r.flops = w.flops > 0 ? w.flops / steps : NAN;
    r.bytes = w.bytes > 0 ? w.bytes / steps : NAN;
    r.tflops = 1e-12 * r.flops * steps / rate_s;
    r.gb_per_s = 1e-9 * r.bytes * steps / rate_s;
    if (c) r.ratio = w.flops > 0 ? 1e12 * r.tflops / c->flops_per_s : 1e9 * r.gb_per_s / c->bytes_per_s;
    return r;
}

static void make_rows(diag_profile rows[ROWS], const struct profiling *f) {
    const profile *p = &f->profile;
    const ceilings *c = &f->ceilings;
    profile_work whole = {.seconds = p->wall_s}, waited = p->work[PROFILE_WAIT];
    for (int i = 0; i < LISTED; i++) {
        profile_work w = p->work[listed[i]];
        double rate_s = w.seconds;
        bool collectives = listed[i] == PROFILE_COLLECTIVE;
        if (collectives) w.seconds += waited.seconds;
        rows[i] =
            row(collectives ? "communication exposed" : profile_names[listed[i]], w, rate_s, p, collectives ? NULL : c);
        whole.flops += w.flops;
    }
    rows[STEP] = row("step", whole, whole.seconds, p, c);
    waited.seconds = fmax(0, f->started_s - waited.seconds);
    rows[HIDDEN] = row("communication hidden", waited, f->started_s, p, NULL);
    rows[CEILING] = (diag_profile){.phase = "ceiling",
                                   .steps = p->steps,
                                   .ms = NAN,
                                   .share = NAN,
                                   .flops = NAN,
                                   .bytes = NAN,
                                   .tflops = 1e-12 * c->flops_per_s,
                                   .gb_per_s = 1e-9 * c->bytes_per_s,
                                   .ratio = NAN};
}

static void print_number(int width, int digits, double x, const char *unit) {
    if (isfinite(x))
        printf(" %*.*f%s", width, digits, x, unit);
    else
        printf(" %*s", width + (int)strlen(unit), "-");
}

static void print(const job *j, const diag_profile rows[ROWS], int64_t last) {
    const ceilings *c = &j->profiling->ceilings;
    if (isatty(STDERR_FILENO)) fputs("\r\033[K", stderr); /* the line of progress */
    printf("%-22s %10s %7s %9s %9s %8s\n", "phase", "ms", "share", "TFLOP/s", "GB/s", "ceiling");
    for (int i = 0; i < CEILING; i++) {
        const diag_profile *r = &rows[i];
        printf("%-22s", r->phase);
        print_number(10, 3, r->ms, "");
        print_number(6, 1, 1e2 * r->share, "%");
        print_number(9, 3, r->tflops, "");
        print_number(9, 2, r->gb_per_s, "");
        print_number(7, 1, 1e2 * r->ratio, "%");
        printf("\n");
    }
    printf("a step on average, %ld of them up to step %ld, on compute rank 0 (%s); what is hidden goes on beside the "
           "phases\nceilings: %.3f TFLOP/s in a product of %ld x %ld x %ld, %.2f GB/s in a copy of %ld MiB (%s)\n",
           (long)rows->steps, (long)last, j->ops.device, rows[CEILING].tflops, (long)c->side, (long)c->side,
           (long)c->side, rows[CEILING].gb_per_s, (long)(c->copy_bytes >> 20),
           j->ops.activation == DTYPE_BF16 ? "bf16" : "fp32");
    fflush(stdout);
}

/* ---------------------------------------------------------------- steps */

/* Groups of one have nothing to wait for. */
static void look(job *j, profile *p) {
    comm_group *const groups[] = {&j->tp, &j->dp, &j->all};
    j->ops.profile = p;
    for (int i = 0; i < 3; i++) groups[i]->profile = groups[i]->size > 1 ? p : NULL;
}

static void start(job *j) {
    j->profiling = calloc(1, sizeof *j->profiling);
    if (!j->profiling) {
        log_warn("out of memory: no profile is made");
        j->profile_steps = 0;
        return;
    }
    j->profiling->ceilings = measure(&j->ops);
    profile_open(&j->profiling->profile, &j->ops);
    look(j, &j->profiling->profile);
}

static void take_started(job *j) {
    j->profiling->started_s += comm_started_s(&j->tp) + comm_started_s(&j->dp);
}

void profiling_begin(job *j, int64_t number) {
    if (j->profile_steps == 0 || number - j->first_step <= WARM_UP_STEPS) return;
    if (!j->profiling) start(j);
    if (j->profiling) profile_begin(&j->profiling->profile);
}

void profiling_end(job *j) {
    if (!j->profiling) return;
    profile_end(&j->profiling->profile);
    take_started(j);
    if (--j->profile_steps == 0) profiling_finish(j);
}

void profiling_finish(job *j) {
    if (j->profile_steps > 0)
        log_warn("%ld steps more were to be profiled (the first %d of a start are not)", (long)j->profile_steps,
                 WARM_UP_STEPS);
    j->profile_steps = 0;
    if (!j->profiling) return;
    diag_profile rows[ROWS];
    profile_finish(&j->profiling->profile);
    comm_finish(&j->dp); /* weights of the last step on their way */
    j->ops.sync(&j->ops);
    take_started(j);
    look(j, NULL);
    make_rows(rows, j->profiling);
    print(j, rows, j->state.step);
    for (int i = 0; i < ROWS; i++) {
        rows[i].step = j->state.step;
        record_post(j->records, DIAG_PROFILE, j->state.step, &rows[i], sizeof rows[i]);
    }
    profile_close(&j->profiling->profile);
    free(j->profiling);
    j->profiling = NULL;
}

void profiling_pause(const job *j) {
    if (j->profiling) profile_pause(&j->profiling->profile);
}

void profiling_resume(const job *j) {
    if (j->profiling) profile_resume(&j->profiling->profile);
}
