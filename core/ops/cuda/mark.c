/* Marks are events of the table's stream, made when they are marked first. Their names are ranges of NVTX, which cost
 * nothing unless Nsight is attached; where the Toolkit has no NVTX 3 there are none. */
#include "core/ops/cuda/mark.h"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>

static void range_begin(const char *name) {
    nvtxRangePushA(name);
}
static void range_end(void) {
    nvtxRangePop();
}
#else
static void range_begin(const char *name) {}
static void range_end(void) {}
#endif

void cuda_mark(ops *o, ops_mark *m, const char *name) {
    cuda_context *c = cuda_of(o);
    cudaEvent_t event = m->event;
    if (!event && !cuda_check(o, cudaEventCreate(&event), "making a mark")) return;
    m->event = event;
    cuda_check(o, cudaEventRecord(event, c->stream), "mark");
    if (c->ranged) range_end();
    if (name) range_begin(name);
    c->ranged = name != NULL;
}

void cuda_mark_wait(ops *o, const ops_mark *m) {
    if (m->event) cuda_check(o, cudaEventSynchronize(m->event), "waiting for a mark");
}

double cuda_mark_span_s(ops *o, const ops_mark *from, const ops_mark *to) {
    float ms = 0;
    if (cuda_check(o, cudaEventSynchronize(to->event), "waiting for a mark"))
        cuda_check(o, cudaEventElapsedTime(&ms, from->event, to->event), "the time between two marks");
    return 1e-3 * (double)ms;
}

void cuda_mark_release(ops *o, ops_mark *m) {
    if (m->event) cuda_check(o, cudaEventDestroy(m->event), "cudaEventDestroy");
    m->event = NULL;
}
