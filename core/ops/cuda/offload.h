/* Private to core/ops/cuda/: the table's offloads and saves. */
#pragma once

#include "core/ops/cuda/context.h"

/* The side stream and its events, with the context; freed with it, and with the staging that open made. */
status cuda_offload_start(cuda_context *c);
void cuda_offload_close(cuda_context *c);

/* As in core/ops/ops.h. */
bool cuda_offload_open(ops *o, size_t bytes);
void *cuda_host_alloc(ops *o, size_t bytes);
void cuda_host_release(ops *o, void *host);
bool cuda_host_lock(ops *o, void *host, size_t bytes);
void cuda_host_unlock(ops *o, void *host);
void cuda_offload(ops *o, int slot, void *host, const offload_part *parts, int count);
status cuda_offload_wait(ops *o, int slot);
void cuda_save(ops *o, void *host, const offload_part *parts, int count);
void cuda_save_fence(ops *o);
status cuda_save_wait(ops *o);
