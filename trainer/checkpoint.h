/* Checkpoints (docs/design.md section 9): RUN/checkpoints/step-00001000/ holds a safetensors shard a compute rank, each
 * with the fp32 boxes of weights and moments that the rank owns (trainer/owned.h), manifest.json and config.yaml.
 *
 * A folder appears under its name when it is whole and durable and when the database holds every row up to its step;
 * then checkpoints/latest, a text file, names it. Written by a thread beside training, read at any P and Q.
 *
 * checkpoint_write.c: the writer's thread and its shard; checkpoint_publish.c: from shards to a checkpoint, and which
 * ones go; checkpoint_read.c: a checkpoint in a model's storage; checkpoint.c: names and the manifest. */
#pragma once

#include "comm/channel.h"
#include "core/box.h"
#include "core/config.h"
#include "core/safetensors.h"
#include "trainer/agreement.h"
#include "trainer/owned.h"
#include "trainer/spikes.h"

#include <jansson.h>

enum { CHECKPOINT_PATH_BYTES = 4096, CHECKPOINT_NAME_BYTES = 32, RUN_ID_BYTES = 33 };

/* What a run is at, besides weights and moments. */
typedef struct checkpoint_state {
    int64_t step, updates;        /* steps made; those of them whose gradient was finite: Adam's count */
    int64_t left_out;             /* steps in a row, up to the last one, without an update */
    double loss, validation_loss; /* last ones; NaN: none */
    spikes spikes;
} checkpoint_state;

/* ---- names ---- */

/* The values a box has. */
typedef enum checkpoint_kind {
    CHECKPOINT_MASTER,
    CHECKPOINT_MOMENT1,
    CHECKPOINT_MOMENT2,
    CHECKPOINT_KINDS
} checkpoint_kind;
extern const char *const checkpoint_kind_names[CHECKPOINT_KINDS];

/* "step-00001000", and the step of such a name; -1 where it is another. */
void checkpoint_name(char out[CHECKPOINT_NAME_BYTES], int64_t step);
int64_t checkpoint_step_of(const char *name);

/* RUN/checkpoints. */
void checkpoint_folder(char out[CHECKPOINT_PATH_BYTES], const config *c);

/* The folder of a step in the run folder: under its name, or as it is called while it is written. */
void checkpoint_path(char out[CHECKPOINT_PATH_BYTES], const config *c, int64_t step, bool whole);

/* ---- the manifest ---- */

/* One box of a global tensor, and where its values are. */
typedef struct checkpoint_box {
    char name[PARAM_NAME_BYTES]; /* of the parameter */
    checkpoint_kind kind;
    int file;                         /* index in the checkpoint's files */
    int64_t rows, cols;               /* of the global tensor */
    int64_t row, col, n_rows, n_cols; /* this box of it */
    char hash[BOX_HASH_BYTES];
    bool checked; /* its values have that hash */
} checkpoint_box;

typedef struct checkpoint {
    char path[CHECKPOINT_PATH_BYTES];
    char run[RUN_ID_BYTES]; /* whose it is */
    checkpoint_state state;
    int tp, dp;              /* of the ranks that wrote it */
    int64_t tokens, windows; /* trained on so far; training samples of its dataset */
    json_t *content;         /* the manifest's, which owns what follows */
    json_t *config;          /* "section.key": "value" */
    int file_count;
    char (*file_names)[CHECKPOINT_NAME_BYTES];
    int64_t *file_bytes;
    safetensors *files; /* opened when first read */
    int box_count;
    checkpoint_box *boxes; /* by name, kind, row, col */
} checkpoint;

/* Reads the manifest of the checkpoint in that folder. NO_INPUT where there is none; DATA, with the reason, when it is
 * damaged, its files are not there in the size that it says, or its boxes do not make whole tensors. The caller closes
 * in any case. */
status checkpoint_read(checkpoint *out, const char *path);
void checkpoint_free(checkpoint *k);

/* The run that a checkpoint's manifest names, into out; NO_INPUT or DATA as checkpoint_read. */
status checkpoint_run_of(char out[RUN_ID_BYTES], const char *path);

/* Weights and moments into the model's storage, whichever share of them this rank has. DATA when values do not have
 * their hash: the storage is then in no defined state. */
status checkpoint_load(checkpoint *k, params *p, ops *o);

/* The weights alone. */
status checkpoint_load_weights(checkpoint *k, params *p, ops *o);

/* The steps of the checkpoints in that folder (of any run), descending, malloc'ed; none where there is no folder. */
status checkpoint_list(const char *folder, int64_t **steps, int *count);

/* The step of the one that folder/latest names; -1 where it names none. */
int64_t checkpoint_latest(const char *folder);

/* Makes folder/latest name that step of the run's checkpoints. */
status checkpoint_set_latest(const config *c, int64_t step);

/* ---- writing ---- */

/* How long the database may take in a run. */
enum { CHECKPOINT_DATABASE_PATIENCE_S = 30 };

typedef struct checkpoint_writer checkpoint_writer;

/* What a checkpoint says about its run. */
typedef struct checkpoint_source {
    const config *config;
    const char *run; /* identity of the run folder; compute rank 0's is used */
    int64_t windows;
    const params *params;
    ops *ops;
    const comm_roles *roles;
    channel_sender
        *records; /* of compute rank 0, NULL on the others: its events, and what the database has confirmed */
    double database_patience_s; /* how long a checkpoint waits for the database to say that the rows are in */
} checkpoint_source;

/* Starts the thread. What source points to outlives the writer. On compute rank 0 also removes what an earlier attempt
 * left half written, so no rank begins before all have opened theirs. CONFIG when there is no memory for a copy of this
 * rank's part. Close in any case. */
status checkpoint_writer_open(checkpoint_writer **out, const checkpoint_source *source);
void checkpoint_writer_close(checkpoint_writer *w);

/* Copies this rank's part, as it is at this place of the queue, and hands it to the thread. Only while nothing is being
 * written. */
void checkpoint_begin(checkpoint_writer *w, const checkpoint_state *state);

/* Before weights or moments change: the queue goes on when they have been copied. */
void checkpoint_fence(checkpoint_writer *w);

/* How this rank's part of a checkpoint is going, for the step's agreement. */
void checkpoint_tell(checkpoint_writer *w, agreement *mine);

/* After each agreement, with what it came to: when all parts are durable, compute rank 0 publishes them; when one
 * failed, it is said once and the others are removed. True, on every rank, when that begins. Collective over the
 * compute ranks. */
bool checkpoint_settle(checkpoint_writer *w, const agreement *all);

/* Whether the last checkpoint that was begun is there: OK, or why not. Known, while nothing is being written, of its
 * part on every rank and of the whole on compute rank 0. */
status checkpoint_result(checkpoint_writer *w);
