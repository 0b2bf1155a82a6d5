/* Private to the store: its state, and what store.c (opening, closing), store_queue.c (records that wait) and
 * store_write.c (a record's rows) ask of each other. rc and int results are SQLite codes. */
#pragma once

#include "diag/store.h"

#include <sqlite3.h>

typedef struct waiting {
    store_record record;
    size_t bytes;
    int64_t number; /* an event's place in the session */
    int64_t message;
    char time[32];
    struct waiting *next;
} waiting;

struct store {
    sqlite3 *db;
    sqlite3_stmt **sql; /* store_write.c's statements, prepared once */
    char *path;
    bool wal;
    int64_t run_id, attempt, events;
    int64_t first_step, last_step; /* of this session; -1: none yet */
    int64_t written_step;          /* the last that is committed */
    int64_t message, messages;     /* now; of which all records are committed */
    bool fresh;
    const maps_matrix *matrices;
    int matrix_count;
    int64_t *matrix_id;
    double *column_of_heads; /* one column over a layer's heads */
    waiting *first, **last;
    int waiting_count, lost;
    size_t waiting_bytes;
    int64_t failures; /* of flushes, since the last that succeeded */
    int last_error;
    bool ended;
};

/* UTC, as SQLite's date functions read it. */
void store_now(char *to, size_t size);

/* NULL where x is not finite. */
void store_bind_real(sqlite3_stmt *q, int index, double x);

/* text stays the caller's until the statement ran. */
void store_bind_text(sqlite3_stmt *q, int index, const char *text);

/* Runs a bound statement that returns no rows. */
int store_run(sqlite3_stmt *q);

/* Prepares and forgets the statements of store_write_record. */
int store_prepare(store *s);
void store_unprepare(store *s);

/* The rows of one record, inside the caller's transaction. */
int store_write_record(store *s, const waiting *w);

/* The steps of this session up to last, and the messages of which all is written. */
int store_write_progress(store *s, int64_t last, int64_t messages);

/* Deletes what a run that goes on behind that step makes again. */
int store_forget_behind(store *s, int64_t step);

/* The session that goes on: its number, events, steps and messages. */
int store_find_session(store *s);

/* The first cell of the answer with the run's id as ?1; absent where it is NULL or there is none. */
int64_t store_query_int(store *s, const char *sql, int64_t absent);

/* As store_flush, at the end: what does not fit on the disk gives its spectra up, oldest first, for the sake of the
 * rest. */
status store_flush_last(store *s);

/* Forgets all records that wait. */
void store_forget(store *s);
