/* The diagnostics work: the door to the trainer is three functions; all else in diag/ is behind it.
 *
 * The trainer sends records and snapshots through a channel (comm/channel.h); a diagnostics rank, or with
 * diagnostics.ranks: 0 a thread of compute rank 0, serves its other end: reassembles snapshots, computes spectra,
 * writes the run's database. Failures here are recorded and do not stop training. */
#pragma once

#include "comm/channel.h"
#include "core/config.h"

typedef struct diag diag;

/* The first diagnostics rank's. resume_step -1: the run begins; creates DIR/run.db and the run's rows in it, or opens
 * it and deletes those of every step. Otherwise the run goes on behind that step: rows of later ones are deleted,
 * events are kept, what spans snapshots is as it was, and a new session begins; without a run.db a new one, with an
 * event that says so. IO when it cannot be written or is in use by another process.
 */
status diag_open(diag **out, const config *c, const char *run_dir, const char *device, int tp, int dp,
                 const char *hosts, int64_t resume_step);

/* As resume_step: the service goes on in its session, where a process that died left it. */
#define DIAG_AGAIN INT64_MAX

/* A further rank's (1 .. diagnostics.ranks - 1): it computes the layers of its own and sends their spectra through
 * `first`, a channel_relay_open() that the caller closes behind diag_serve(). */
status diag_open_further(diag **out, const config *c, int rank, channel_sender *first);

/* Serves the channel until every sender has said CHANNEL_END. snapshots: senders that contribute to each snapshot. */
status diag_serve(diag *d, channel_receiver *channel, int senders);

/* Checkpoints and closes the database. IO when records were lost: they could not be written to the end. */
status diag_close(diag *d);

/* True when a snapshot must carry the parameter of that global name: the Q-K chain of the config's variant. */
bool diag_wants(const config *c, const char *tensor_name);

/* Reads diagnostics.alerts. CONFIG with the rule that is wrong. What a rule asks for, compute rank 0 learns by
 * channel_take_requests(). */
status diag_check_alerts(const config *c);

/* About how many bytes of the database a snapshot takes: its spectra; and, at esd_every steps, singular values and top
 * pairs beside them. 0 where the configuration is wrong or asks for none. */
typedef struct diag_size {
    int64_t spectra_bytes, esd_bytes;
} diag_size;

diag_size diag_snapshot_size(const config *c);

/* The diagnostics rank that has the layer: ranks take turns. */
int diag_rank_of_layer(const config *c, int64_t layer);

/* ---- what the trainer sends: message kind, and the struct that is the message's data ---- */

typedef enum diag_record_kind {
    DIAG_STEP,
    DIAG_EVAL,
    DIAG_EVENT,
    DIAG_FINISH,
    DIAG_CHECKPOINT,
    DIAG_PROFILE
} diag_record_kind;

typedef struct diag_step { /* one row of train_metrics; a value that is not finite becomes NULL */
    int64_t step, tokens;
    double loss, grad_norm, lr, step_ms, tokens_per_s, mfu;
} diag_step;

typedef struct diag_eval { /* one row of eval_metrics */
    int64_t step, tokens;
    double loss; /* mean over tokens, nats */
    char split[24];
} diag_eval;

typedef struct diag_event { /* one row of events; kinds: drop, checkpoint, data, fault, ... */
    int64_t step;
    char level[8], kind[24], message[512];
} diag_event;

typedef struct diag_profile { /* one row of profile; a value that is not finite becomes NULL */
    int64_t step, steps;      /* the last of so many */
    double ms, share, flops, bytes, tflops, gb_per_s, ratio;
    char phase[24];
} diag_profile;

typedef struct diag_checkpoint { /* no row: when all up to that step is committed, channel_confirm() says so */
    int64_t step;
} diag_checkpoint;

typedef struct diag_finish { /* the last record: how the run ended */
    int64_t last_step;
    int exit_code;
    char status[24]; /* finished, stopped, failed */
} diag_finish;
