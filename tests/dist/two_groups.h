/* Overlapping tensor- and data-parallel groups over either backend (docs/cases.md 21). */
#pragma once

#include "comm/comm.h"
#include "core/ops/ops.h"
#include "dist.h"

/* 500 steps of a tensor- and a data-parallel group, 2 x Q ranks: a broadcast of one under way over collectives of both,
 * and sums of the other, started one by one as a backward pass does. */
static void check_two_groups(ops *o) {
    enum { STEPS = 500, COUNT = 3000, LAYERS = 3 };
    MPI_Comm across_tensor, across_data;
    comm_group tp, dp;
    int size = world_size() > 1 ? 2 : 1;
    MPI_Comm_split(MPI_COMM_WORLD, world_rank() / size, world_rank(), &across_tensor);
    MPI_Comm_split(MPI_COMM_WORLD, world_rank() % size, world_rank(), &across_data);
    check_status(comm_over_device(&tp, across_tensor, o), STATUS_OK);
    check_status(comm_over_device(&dp, across_data, o), STATUS_OK);
    static float host[COUNT], scattered[COUNT];
    size_t bytes = sizeof host;
    float *key = o->alloc(o, bytes), *data = o->alloc(o, bytes), *sums[LAYERS][2];
    assert_true(key && data);
    for (int i = 0; i < LAYERS * 2; i++) assert_non_null(sums[i / 2][i % 2] = o->alloc(o, bytes));
    for (int step = 0; step < STEPS; step++) {
        int root = step % tp.size;
        for (int i = 0; i < COUNT; i++) host[i] = tp.rank == root ? (float)step : -1;
        o->upload(o, key, host, bytes);
        for (int i = 0; i < COUNT; i++) host[i] = 1;
        o->upload(o, data, host, bytes);
        comm_broadcast_start(&tp, key, COUNT, DTYPE_F32, root, "key", 0);
        comm_all_reduce(&dp, data, COUNT, DTYPE_F32, COMM_SUM, "gradients", -1);
        comm_finish(&tp);
        comm_all_reduce(&tp, data, COUNT, DTYPE_F32, COMM_SUM, "dx", 0);
        o->download(o, host, data, bytes);
        assert_true(host[COUNT - 1] == (float)world_size());
        o->download(o, host, key, bytes);
        assert_true(host[0] == (float)step && host[COUNT - 1] == (float)step);
        for (int layer = LAYERS - 1; layer >= 0; layer--) {
            for (int i = 0; i < COUNT; i++) host[i] = (float)(layer + step);
            o->upload(o, sums[layer][0], host, bytes);
            o->upload(o, sums[layer][1], host, bytes);
            comm_reduce_scatter_start(&dp, sums[layer][0], COUNT / dp.size, DTYPE_F32, "gradients", layer);
            comm_all_reduce(&tp, data, COUNT, DTYPE_F32, COMM_MAX, "dx", layer);
            comm_sum_start(&dp, sums[layer][1], COUNT, DTYPE_F32, "gradients", layer);
            comm_progress(&dp);
        }
        comm_finish(&dp);
        for (int layer = 0; layer < LAYERS; layer++) {
            float want = (float)(dp.size * (layer + step));
            o->download(o, scattered, sums[layer][0], bytes);
            o->download(o, host, sums[layer][1], bytes);
            assert_true(scattered[dp.rank * (COUNT / dp.size)] == want);
            assert_true(host[0] == want && host[COUNT - 1] == want);
        }
    }
    check_status(comm_status(&tp), STATUS_OK);
    check_status(comm_status(&dp), STATUS_OK);
    for (int i = 0; i < LAYERS * 2; i++) o->release(o, sums[i / 2][i % 2]);
    o->release(o, key);
    o->release(o, data);
    comm_close(&tp);
    comm_close(&dp);
    MPI_Comm_free(&across_tensor);
    MPI_Comm_free(&across_data);
}
