#include "comm/layout.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* The command that starts that many ranks. Open MPI binds two ranks to cores and three to none unless it is told, and
 * refuses more ranks than cores. */
static const char *launch_line(char *buffer, size_t bytes, int64_t ranks, int slots) {
    snprintf(buffer, bytes, "mpirun -n %lld --bind-to none %sbulkhead train CONFIG", (long long)ranks,
             ranks > slots ? "--oversubscribe " : "");
    return buffer;
}

/* Finds Q, or says which launch would have one. */
static status count_ranks(layout *l, int world, int tp, int dp, int diagnostics, int slots) {
    char line[128], other[128];
    if (tp < 1 || dp < 0 || diagnostics < 0)
        return status_fail(STATUS_CONFIG,
                           "parallel.tensor = %d, parallel.data = %d, diagnostics.ranks = %d: the first must be at "
                           "least 1, the others at least 0",
                           tp, dp, diagnostics);
    int64_t compute = (int64_t)world - diagnostics;
    l->tp = tp;
    if (dp > 0) {
        int64_t wanted = (int64_t)tp * dp;
        l->dp = dp;
        if (compute == wanted) return STATUS_OK;
        return status_fail(STATUS_CONFIG,
                           "parallel.tensor %d x parallel.data %d + diagnostics.ranks %d needs %lld ranks, but the job "
                           "has %d; start it with: %s",
                           tp, dp, diagnostics, (long long)(wanted + diagnostics), world,
                           launch_line(line, sizeof line, wanted + diagnostics, slots));
    }
    if (compute >= tp && compute % tp == 0) {
        l->dp = (int)(compute / tp);
        return STATUS_OK;
    }
    if (compute < tp)
        return status_fail(STATUS_CONFIG,
                           "parallel.tensor %d + diagnostics.ranks %d needs at least %lld ranks, but the job has %d; "
                           "start it with: %s",
                           tp, diagnostics, (long long)tp + diagnostics, world,
                           launch_line(line, sizeof line, (int64_t)tp + diagnostics, slots));
    int64_t fewer = compute / tp * tp + diagnostics;
    return status_fail(STATUS_CONFIG,
                       "%d ranks less diagnostics.ranks %d leave %lld compute ranks, which parallel.tensor %d does not "
                       "divide; start it with: %s, or: %s",
                       world, diagnostics, (long long)compute, tp, launch_line(line, sizeof line, fewer, slots),
                       launch_line(other, sizeof other, fewer + tp, slots));
}

/* Gives every host a number in the order of its lowest world rank: ordinal[i] for the host of rank i. Returns how many
 * there are. */
static int number_hosts(int *ordinal, const int *host, int world) {
    int hosts = 0;
    for (int i = 0; i < world; i++) {
        int first = 0;
        while (host[first] != host[i]) first++;
        ordinal[i] = first == i ? hosts++ : ordinal[first];
    }
    return hosts;
}

/* Takes each diagnostics rank from the host that has the most ranks left, the last such host, as its highest rank. */
static void choose_diagnostics(bool *is_diagnostics, int *left, const int *ordinal, int hosts, int world, int count) {
    for (int i = 0; i < world; i++) left[ordinal[i]]++;
    for (; count > 0; count--) {
        int fullest = 0;
        for (int h = 1; h < hosts; h++)
            if (left[h] >= left[fullest]) fullest = h;
        int rank = world - 1;
        while (ordinal[rank] != fullest || is_diagnostics[rank]) rank--;
        is_diagnostics[rank] = true;
        left[fullest]--;
    }
}

static void number_ranks(layout *l, const bool *is_diagnostics, const int *left, const int *ordinal, int hosts,
                         int world) {
    int computes = 0, watchers = 0;
    for (int h = 0; h < hosts; h++) {
        int local = 0;
        for (int i = 0; i < world; i++) {
            if (ordinal[i] != h) continue;
            l->compute_on_host[i] = left[h];
            l->local_compute[i] = is_diagnostics[i] ? -1 : local++;
            if (!is_diagnostics[i]) l->compute[computes++] = i;
        }
    }
    for (int i = 0; i < world; i++)
        if (is_diagnostics[i]) l->diagnostics[watchers++] = i;
}

/* CONFIG when a tensor-parallel group crosses hosts: every layer would wait for the network several times. Ranks dealt
 * evenly, a multiple of P on each host, never do. */
static status check_groups(const layout *l, const int *ordinal, int hosts, int diagnostics) {
    int compute = l->tp * l->dp, group = -1;
    for (int c = 0; c < compute && group < 0; c++)
        if (ordinal[l->compute[c]] != ordinal[l->compute[c - c % l->tp]]) group = c / l->tp;
    if (group < 0) return STATUS_OK;
    int groups_a_host = compute / hosts / l->tp > 0 ? compute / hosts / l->tp : 1;
    return status_fail(STATUS_CONFIG,
                       "tensor-parallel group %d would cross hosts: %d compute ranks on %d hosts are not a multiple of "
                       "parallel.tensor %d on each; start it with: mpirun -n %d --map-by node --bind-to none bulkhead "
                       "train CONFIG --set parallel.data=%d, or lower parallel.tensor",
                       group, compute, hosts, l->tp, groups_a_host * hosts * l->tp + diagnostics,
                       groups_a_host * hosts);
}

status layout_make(layout *out, const int *host, int world, int tp, int dp, int diagnostics, int slots) {
    *out = (layout){0};
    TRY(count_ranks(out, world, tp, dp, diagnostics, slots));
    size_t n = (size_t)world;
    int *ordinal = calloc(n, sizeof *ordinal), *left = calloc(n, sizeof *left);
    bool *is_diagnostics = calloc(n, sizeof *is_diagnostics);
    out->compute = calloc(n, sizeof *out->compute);
    out->diagnostics = calloc(n, sizeof *out->diagnostics);
    out->local_compute = calloc(n, sizeof *out->local_compute);
    out->compute_on_host = calloc(n, sizeof *out->compute_on_host);
    status result = STATUS_OK;
    if (!ordinal || !left || !is_diagnostics || !out->compute || !out->diagnostics || !out->local_compute ||
        !out->compute_on_host) {
        layout_free(out);
        result = status_fail(STATUS_INTERNAL, "out of memory for the roles of %d ranks", world);
    } else {
        int hosts = number_hosts(ordinal, host, world);
        choose_diagnostics(is_diagnostics, left, ordinal, hosts, world, diagnostics);
        number_ranks(out, is_diagnostics, left, ordinal, hosts, world);
        result = check_groups(out, ordinal, hosts, diagnostics);
        if (result != STATUS_OK) layout_free(out);
    }
    free(ordinal);
    free(left);
    free(is_diagnostics);
    return result;
}

int layout_turn(const layout *l, int world_rank) {
    int count = l->tp * l->dp, second = 1;
    while (second < count && l->local_compute[l->compute[second]] != 0) second++;
    if (second == count) second = 1;
    if (world_rank == l->compute[0]) return 0;
    return second < count && world_rank == l->compute[second] ? 1 : 2;
}

void layout_free(layout *l) {
    free(l->compute);
    free(l->diagnostics);
    free(l->local_compute);
    free(l->compute_on_host);
    *l = (layout){0};
}
