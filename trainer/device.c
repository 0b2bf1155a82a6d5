#include "trainer/device.h"

#include <sched.h>

static status open_cpu(ops *o, const attn_core **core, const config *c) {
    if (c->train.precision == PRECISION_BF16)
        return status_fail(STATUS_CONFIG, "train.precision: bf16 is for GPUs; the CPU computes in fp32 (auto)");
    *core = &attn_core_cpu;
    return ops_cpu(o, (int)c->run.threads);
}

static status open_cuda(ops *o, const attn_core **core, const config *c, const comm_roles *roles, int devices) {
    /* One GPU may be another one for each rank, bound by the scheduler; were it the same one, its identity would tell
     * (comm_roles_groups). */
    if (devices > 1 && roles->local_compute_ranks > devices)
        return status_fail(
            STATUS_CONFIG,
            "%d compute ranks on host %s, but it shows %d GPUs: start %d there (mpirun -n %d for one such "
            "host), or set run.device: cpu",
            roles->local_compute_ranks, roles->host, devices, devices, devices + roles->diagnostics_ranks);
    int index = devices == 1 ? 0 : roles->local_compute_rank;
    TRY(ops_cuda(o, index, c->train.precision == PRECISION_FP32));
    *core = attn_core_cuda();
    if (!*core)
        return status_fail(STATUS_CONFIG,
                           "run.device: this version has no attention for GPUs yet; set run.device: cpu");
    return STATUS_OK;
}

status device_open(ops *o, const attn_core **core, const config *c, const comm_roles *roles) {
    int devices = c->run.device == DEVICE_CPU ? 0 : ops_cuda_devices();
    bool able = devices > 0 && attn_core_cuda();
    bool cuda = c->run.device == DEVICE_CUDA || (c->run.device == DEVICE_AUTO && able);
    return cuda ? open_cuda(o, core, c, roles, devices) : open_cpu(o, core, c);
}

int64_t device_cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

void device_close(ops *o) {
    if (o->close) o->close(o);
    *o = (ops){0};
}
