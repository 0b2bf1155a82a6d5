/* Private to checkpoint_write.c and checkpoint_publish.c. */
#pragma once

#include "trainer/checkpoint.h"

/* The name of a rank's shard. */
void checkpoint_shard_name(char out[CHECKPOINT_NAME_BYTES], int rank);

/* Compute rank 0, when every rank's shard is durable. Waits for the database, then makes the folder a checkpoint and
 * removes those that are not kept. On failure nothing of it is left. */
status checkpoint_publish(const checkpoint_source *source, const checkpoint_state *state);

/* Removes the folder of a step that was not published. */
void checkpoint_discard(const config *c, int64_t step);

/* Removes what is half written or half removed. */
void checkpoint_clean(const config *c);
