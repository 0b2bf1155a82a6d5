/* The GPUs of this host, dealt to the runs of a sweep that go on side by side. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum { SWEEP_GPUS = 64 };

typedef struct sweep_gpus {
    int count;
    char *names[SWEEP_GPUS]; /* as CUDA_VISIBLE_DEVICES writes them */
    bool taken[SWEEP_GPUS];
} sweep_gpus;

/* `devices` GPUs that the program sees; visible: the value of CUDA_VISIBLE_DEVICES, which then names them, or NULL. */
void sweep_gpus_open(sweep_gpus *g, int devices, const char *visible);

/* Takes `need` GPUs: a value for CUDA_VISIBLE_DEVICES into list. False: that many are not free, or list is too short.
 */
bool sweep_gpus_take(sweep_gpus *g, int need, char *list, size_t bytes);

/* Gives back the GPUs of such a list. */
void sweep_gpus_give(sweep_gpus *g, const char *list);

void sweep_gpus_close(sweep_gpus *g);
