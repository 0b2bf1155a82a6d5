/* The nulls of a run: fills the columns of diag/nulls_columns.h, from ensembles that are shipped, cached or made in the
 * background, and fills them later where an ensemble is not there yet. Not thread-safe: one thread serves it. */
#pragma once

#include "diag/maps.h"
#include "diag/store.h"

typedef struct nulls nulls;

/* matrices [count] are the maps', as long as n is open. draws of a head's ensemble, a sixteenth of them for a layer's
 * (docs/design.md section 6.4); 0: edges only. threads make ensembles, in the background; 0: none are needed on this
 * rank. note [note_bytes]: what is to be told about the cache, "" for nothing. INTERNAL out of memory. */
status nulls_open(nulls **out, const config *c, const maps_matrix *matrices, int count, const char *run_dir, int draws,
                  int threads, char *note, size_t note_bytes);
void nulls_close(nulls *n);

/* From the weights: the edge columns and the ratios of the layers that are in the snapshot. rows [count], values
 * [maps_value_count] as maps_compute leaves them; rows of other layers stay as they are. */
void nulls_place_rows(nulls *n, const snapshot *s, spectrum *rows, const double *values);

/* The gains that are in the snapshot, of any layer: the latest when nulls_fill() is called count. */
void nulls_place_gains(nulls *n, const snapshot *s);

/* Whether the last nulls_place_gains() took this layer's: they are what ensembles keep from there on. */
bool nulls_took_gains(const nulls *n, int layer);

/* Rows [count] as the database has them: null_log again, from the ratios. */
void nulls_restore_rows(const nulls *n, spectrum *rows);

/* Both. */
void nulls_place(nulls *n, const snapshot *s, spectrum *rows, const double *values);

/* The columns against ensembles of all rows that are placed, and keeps a copy of rows where one is missing. r: the
 * snapshot as it is recorded; its values are not read. */
void nulls_fill(nulls *n, const store_snapshot *r);

/* The rows that are kept of that step get rows' top_overlap, which is known when tw_score is. */
void nulls_keep_overlaps(nulls *n, int64_t step, const spectrum *rows);

/* A snapshot of before with more columns filled, as it is to be recorded again; rows are malloc'ed. false: none. */
bool nulls_next_snapshot(nulls *n, store_snapshot *out);

/* A new row of the table of nulls. false: none. */
bool nulls_next_row(nulls *n, store_null *out);

/* Something to be told once; false: nothing. */
bool nulls_next_note(nulls *n, char *to, size_t bytes);

/* Waits until all that is missing is made or the time is over; returns the snapshots whose columns are not all there.
 */
int nulls_finish(nulls *n, double seconds);

/* The same, aloud: every 10 s a line says what is waited for. Every 2 s and at the end came(user) takes what there is
 * by then; false: no more waiting. */
int nulls_finish_aloud(nulls *n, double seconds, bool (*came)(void *user), void *user);

/* What those wait for, for people: how many ensembles, and how far the one that is being made is. */
void nulls_describe(nulls *n, char *to, size_t bytes);
