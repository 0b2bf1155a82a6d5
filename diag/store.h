/* The run's database (docs/design.md section 7): one SQLite file, one writer, readers welcome.
 *
 * Writing is a queue: store_add() keeps a record, store_flush() writes all that wait in one transaction. When that
 * fails (disk full, database locked) they stay, are counted, and go with the next transaction, together with an event
 * that says so: a fault here never stops training. Upserts everywhere: a replayed step leaves no duplicates. What is
 * not finite is NULL. */
#pragma once

#include "core/config.h"
#include "diag/diag.h"
#include "diag/maps.h"
#include "diag/nulls_draw.h"

typedef struct store store;

/* How a session begins: as one more; likewise, all rows but events and nulls behind a step deleted; as the one whose
 * writer died. */
typedef enum store_start { STORE_SESSION, STORE_RUN_GOES_ON, STORE_SESSION_GOES_ON } store_start;

typedef struct store_session {
    const config *config;
    const char *device, *hosts, *code_version;
    int tp, dp;
    const maps_matrix *matrices; /* [matrix_count], the caller's, as long as the store is open */
    int matrix_count;
    store_start start;
    int64_t resume_step; /* of STORE_RUN_GOES_ON: the last that stays */
} store_session;

/* Opens or creates the database and the rows of the run and of this session. IO when it cannot be written or another
 * process writes it, DATA when the file is no database of ours. */
status store_open(store **out, const char *path, const store_session *session);

typedef enum store_kind {
    STORE_STEP,
    STORE_EVAL,
    STORE_EVENT,
    STORE_SNAPSHOT,
    STORE_NULL,
    STORE_GAINS,
    STORE_PROFILE,
    STORE_FINISH
} store_kind;

typedef struct store_snapshot {
    int64_t step, tokens; /* tokens -1: not known */
    const char *status;   /* planned, done, dropped, failed */
    double lag_ms, compute_ms;
    spectrum *rows; /* [matrix_count] malloc'ed, given to the store; NULL unless done */
    double *values; /* all singular values, likewise; NULL: not stored */
    float *pairs;   /* top pairs, likewise; those that begin with NaN are not stored */
} store_snapshot;

typedef struct store_null { /* one row of nulls */
    int64_t null_id;        /* a hash of the key */
    char key[160];
    int64_t draws, seed;
    nulls_moments moments;
} store_null;

typedef struct store_gains { /* one row of gains */
    int64_t step;
    char tensor[64];
    int count;
    float *gain; /* [count] malloc'ed, given to the store */
} store_gains;

typedef struct store_record {
    store_kind kind;
    union {
        store_null null;
        store_gains gains;
        diag_step step;
        diag_eval eval;
        diag_event event;
        diag_profile profile;
        diag_finish finish;
        store_snapshot snapshot;
    };
} store_record;

/* Keeps a copy until it is written. */
void store_add(store *s, const store_record *record);

/* Records that are added from now on come of that message (channel_message.number), or of the last one where that
 * comes again. */
void store_set_message(store *s, int64_t number);

/* The last message of this session of which all records are committed; 0: none. */
int64_t store_messages(const store *s);

/* What a run that goes on reads again. True where there was no such run in the database. */
bool store_is_new(const store *s);

/* The last step of train_metrics, and of the snapshots whatever became of them; -1: none. */
int64_t store_last_metrics(store *s);
int64_t store_last_snapshot(store *s);

/* Calls for each snapshot with spectra, by steps, and for its rows of gains before it. What both get is theirs during
 * the call; a snapshot has rows, as they were given to the store but for null_log, and pairs, those that are stored.
 * IO when the database cannot be read. */
typedef struct store_visitor {
    void (*gains)(void *user, const store_gains *g);
    void (*snapshot)(void *user, const store_snapshot *r);
    void *user;
} store_visitor;

status store_read_back(store *s, const store_visitor *visitor);

/* An event of the diagnostics' own. */
__attribute__((format(printf, 5, 6))) void store_event(store *s, int64_t step, const char *level, const char *kind,
                                                       const char *format, ...);

/* Writes what waits. IO when it could not: the records stay. */
status store_flush(store *s);

/* What is committed stays through a loss of power, too. */
void store_make_durable(store *s);

/* True when a commit costs no disk flush, so that each record may be written at once. */
bool store_is_cheap(const store *s);

/* Records that wait. */
int store_waiting(const store *s);

/* Writes what waits, checkpoints, leaves a single file in rollback mode, frees. IO when records were lost. */
status store_close(store *s);
