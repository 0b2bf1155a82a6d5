/* Start and end of a job, its roles, and what its ranks agree on. */
#define _GNU_SOURCE /* cpu_set_t */
#include "comm/roles.h"

#include "comm/backends.h"
#include "comm/backoff.h"
#include "comm/layout.h"
#include "core/log.h"

#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 2048, AGREE_TESTS_BEFORE_SLEEP = 2000, AGREE_SLEEP_US = 200, ABORT_LIMIT_S = 10 };

status comm_start(int *argc, char ***argv) {
    int provided = MPI_THREAD_SINGLE;
    TRY(comm_check(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided), "starting MPI"));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    if (provided < MPI_THREAD_MULTIPLE)
        return status_fail(STATUS_INTERNAL, "this MPI library does not let several threads communicate "
                                            "(MPI_THREAD_MULTIPLE); use an Open MPI that does, such as Debian's");
    return STATUS_OK;
}

static bool mpi_runs(void) {
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    return started && !ended;
}

void comm_stop(void) {
    if (mpi_runs()) MPI_Finalize();
}

_Noreturn void comm_abort(int exit_code) {
    signal(SIGALRM, SIG_DFL); /* MPI_Abort has been seen to hang: then the alarm ends this rank, and mpirun the rest */
    sigset_t alarm_only;
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
    alarm(ABORT_LIMIT_S);
    if (mpi_runs()) MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

/* Waits as MPI_Wait does, but leaves the core to others when the peers take long. */
static int wait_gently(MPI_Request *request) {
    backoff pause = {0};
    int done = 0, code = MPI_SUCCESS;
    for (int tests = 0; !done && code == MPI_SUCCESS; tests++) {
        code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (!done && tests >= AGREE_TESTS_BEFORE_SLEEP) backoff_sleep(&pause, AGREE_SLEEP_US);
    }
    return code;
}

status comm_agree(MPI_Comm c, status mine) {
    int rank = 0;
    TRY(comm_check(MPI_Comm_rank(c, &rank), "agreeing on a status"));
    /* One maximum finds the worst code and, among its ranks, the lowest. */
    int64_t worst = ((int64_t)mine << 32) | (INT_MAX - rank);
    MPI_Request request;
    TRY(comm_check(MPI_Iallreduce(MPI_IN_PLACE, &worst, 1, MPI_INT64_T, MPI_MAX, c, &request), "agreeing on a status"));
    TRY(comm_check(wait_gently(&request), "agreeing on a status"));
    status agreed = (status)(worst >> 32);
    if (agreed == STATUS_OK) return STATUS_OK;
    int speaker = INT_MAX - (int)(worst & INT_MAX);
    char message[MESSAGE_BYTES] = "";
    if (rank == speaker) snprintf(message, sizeof message, "%s", status_message());
    TRY(comm_check(MPI_Bcast(message, MESSAGE_BYTES, MPI_CHAR, speaker, c), "passing on a message"));
    message[MESSAGE_BYTES - 1] = '\0';
    status_clear();
    return status_fail(agreed, "%s", message[0] ? message : status_text(agreed));
}

/* Cores that any rank of this host may run on: a rank alone may be bound to one of them. */
static status count_cores(int *out, MPI_Comm local) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    sched_getaffinity(0, sizeof cores, &cores);
    TRY(comm_check(MPI_Allreduce(MPI_IN_PLACE, &cores, sizeof cores, MPI_BYTE, MPI_BOR, local), "counting cores"));
    *out = CPU_COUNT(&cores);
    return STATUS_OK;
}

/* hosts[i]: the lowest world rank on the host of rank i. slots: ranks that mpirun starts unasked; only where all are on
 * one host are these its cores, elsewhere a host file or the scheduler says. */
static status find_hosts(comm_roles *r, int *hosts, int *slots) {
    MPI_Comm local = MPI_COMM_NULL;
    TRY(comm_check(MPI_Comm_split_type(r->world, MPI_COMM_TYPE_SHARED, r->world_rank, MPI_INFO_NULL, &local),
                   "finding the ranks of this host"));
    int lowest = r->world_rank, on_host = 0, cores = 0;
    status result = comm_check(MPI_Allreduce(MPI_IN_PLACE, &lowest, 1, MPI_INT, MPI_MIN, local), "naming this host");
    if (result == STATUS_OK) result = count_cores(&cores, local);
    MPI_Comm_size(local, &on_host);
    MPI_Comm_free(&local);
    if (result != STATUS_OK) return result;
    r->oversubscribed = on_host > cores;
    *slots = on_host == r->world_size ? cores : INT_MAX;
    return comm_check(MPI_Allgather(&lowest, 1, MPI_INT, hosts, 1, MPI_INT, r->world), "naming the hosts");
}

static status take_role(comm_roles *r, layout *l, int diagnostics_ranks) {
    r->tp = l->tp;
    r->dp = l->dp;
    r->diagnostics_ranks = diagnostics_ranks;
    r->compute_rank = r->tp_rank = r->dp_rank = -1;
    r->local_compute_rank = l->local_compute[r->world_rank];
    r->diagnostics = r->local_compute_rank < 0;
    r->local_compute_ranks = l->compute_on_host[r->world_rank] > 0 ? l->compute_on_host[r->world_rank] : 1;
    r->turn = layout_turn(l, r->world_rank);
    r->diagnostics_rank = -1;
    for (int i = 0; i < diagnostics_ranks; i++)
        if (l->diagnostics[i] == r->world_rank) r->diagnostics_rank = i;
    for (int c = 0; c < l->tp * l->dp; c++) {
        if (l->compute[c] != r->world_rank) continue;
        r->compute_rank = c;
        r->tp_rank = c % l->tp;
        r->dp_rank = c / l->tp;
    }
    r->compute_world_ranks = l->compute;
    r->diagnostics_world_ranks = l->diagnostics;
    l->compute = l->diagnostics = NULL; /* they belong to r now */
    TRY(comm_check(MPI_Comm_split(r->world, r->diagnostics ? MPI_UNDEFINED : 0, r->compute_rank, &r->compute),
                   "gathering the compute ranks"));
    return comm_check(MPI_Comm_dup(r->world, &r->channel), "opening the channel");
}

status comm_roles_split(comm_roles *out, int tp, int dp, int diagnostics_ranks) {
    *out = (comm_roles){
        .patience_s = COMM_PATIENCE_S, .world = MPI_COMM_NULL, .compute = MPI_COMM_NULL, .channel = MPI_COMM_NULL};
    layout l = {0};
    int slots = 0;
    gethostname(out->host, sizeof out->host - 1);
    TRY(comm_check(MPI_Comm_dup(MPI_COMM_WORLD, &out->world), "copying the world"));
    MPI_Comm_set_errhandler(out->world, MPI_ERRORS_RETURN); /* the communicators made from it inherit this */
    MPI_Comm_rank(out->world, &out->world_rank);
    MPI_Comm_size(out->world, &out->world_size);
    int *hosts = calloc((size_t)out->world_size, sizeof *hosts);
    status result = hosts ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for %d hosts", out->world_size);
    result = comm_agree(out->world, result);
    if (result == STATUS_OK) result = comm_agree(out->world, find_hosts(out, hosts, &slots));
    if (result == STATUS_OK)
        result = comm_agree(out->world, layout_make(&l, hosts, out->world_size, tp, dp, diagnostics_ranks, slots));
    if (result == STATUS_OK) result = comm_agree(out->world, take_role(out, &l, diagnostics_ranks));
    layout_free(&l);
    free(hosts);
    if (result != STATUS_OK) comm_roles_free(out);
    return result;
}

status comm_roles_groups(const comm_roles *r, ops *device, comm_group *tp, comm_group *dp) {
    comm_self(tp);
    comm_self(dp);
    MPI_Comm along_tp = MPI_COMM_NULL, along_dp = MPI_COMM_NULL;
    if (device->context) TRY(comm_own_devices(r->compute, device));
    TRY(comm_check(MPI_Comm_split(r->compute, r->dp_rank, r->tp_rank, &along_tp), "making the tensor-parallel groups"));
    status result = comm_over_device(tp, along_tp, device);
    MPI_Comm_free(&along_tp);
    TRY(result);
    TRY(comm_check(MPI_Comm_split(r->compute, r->tp_rank, r->dp_rank, &along_dp), "making the data-parallel groups"));
    result = comm_over_device(dp, along_dp, device);
    MPI_Comm_free(&along_dp);
    return result;
}

void comm_roles_free(comm_roles *r) {
    MPI_Comm *all[] = {&r->channel, &r->compute, &r->world};
    for (int i = 0; i < 3; i++)
        if (*all[i] != MPI_COMM_NULL) MPI_Comm_free(all[i]);
    free(r->compute_world_ranks);
    free(r->diagnostics_world_ranks);
    r->compute_world_ranks = r->diagnostics_world_ranks = NULL;
}
