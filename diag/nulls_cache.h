/* Ensembles that are known: those shipped with the program, those of the file that runs share, those made since.
 *
 * An ensemble's key is its shape, its log ratios, draws and seed: the same key is the same ensemble wherever it was
 * made. The file is text, one ensemble a line, with a checksum at its end, and is replaced as a whole; two runs that
 * write at once lose at most what one of them made. Calls may come from several threads. */
#pragma once

#include "diag/nulls_draw.h"

#include <stddef.h>

enum { NULLS_KEY_BYTES = 160, NULLS_SEED = 20250710 };

typedef struct nulls_entry {
    char key[NULLS_KEY_BYTES];
    int draws;
    nulls_moments moments;
} nulls_entry;

typedef struct nulls_cache nulls_cache;

/* The key of that ensemble; log_ratio [ratio_count]. */
void nulls_key(char key[NULLS_KEY_BYTES], const nulls_shape *s, const double *log_ratio, int draws);

/* Reads the file of the cache folder: $BULKHEAD_CACHE, $XDG_CACHE_HOME/bulkhead, $HOME/.cache/bulkhead, or else
 * run_dir. note [note_bytes]: why the file was ignored, "" otherwise; it is replaced with the next ensemble. INTERNAL
 * out of memory. */
status nulls_cache_open(nulls_cache **out, const char *run_dir, char *note, size_t note_bytes);
void nulls_cache_close(nulls_cache *c);

/* The file's path. */
const char *nulls_cache_path(const nulls_cache *c);

/* Copies the ensemble of that key. false: not known. */
bool nulls_cache_find(nulls_cache *c, const char *key, nulls_moments *out);

/* Adds an ensemble, and writes the file where save is set, with what others have written meanwhile. IO when that
 * fails: the ensemble is known all the same. */
status nulls_cache_add(nulls_cache *c, const nulls_entry *entry, bool save);

/* The ensembles that come with the program (diag/nulls_table.c, made by the target make_nulls). */
extern const nulls_entry nulls_table[];
extern const int nulls_table_count;
