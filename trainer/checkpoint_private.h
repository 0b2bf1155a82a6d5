/* Private to checkpoint_write.c and checkpoint_publish.c. */
#pragma once

#include "trainer/checkpoint.h"

/* RUN/checkpoints. */
void checkpoint_folder(char out[CHECKPOINT_PATH_BYTES], const config *c);

/* The name of a rank's shard, and of a box in it: "layers.0.attention.W_Q/moment1@128:0". */
enum { CHECKPOINT_BOX_NAME_BYTES = PARAM_NAME_BYTES + 64 };
void checkpoint_shard_name(char out[CHECKPOINT_NAME_BYTES], int rank);

/* What a shard's metadata say about a box, under its name. */
#define CHECKPOINT_BOX_FORMAT "xxh3 %s of %ld x %ld"
#define CHECKPOINT_BOX_SCAN   "xxh3 %32s of %ld x %ld"

/* Compute rank 0, when every rank's shard is durable. Waits for the database, then makes the folder a checkpoint and
 * removes those that are not kept. On failure nothing of it is left. */
status checkpoint_publish(const checkpoint_source *source, const checkpoint_state *state);

/* Removes the folder of a step that was not published. */
void checkpoint_discard(const config *c, int64_t step);

/* Removes what is half written or half removed. */
void checkpoint_clean(const config *c);
