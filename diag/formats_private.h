/* What the formats share: private to formats*.c. */
#pragma once

#include "core/file.h"
#include "diag/formats.h"

#include <sqlite3.h>
#include <stdio.h>

typedef struct formats {
    sqlite3 *db;
    const char *path;   /* of the database, for messages */
    const char *folder; /* to write in */
    formats_counts *counts;
} formats;

/* A statement over the database. DATA when a table or column is missing. */
status formats_ask(const formats *f, sqlite3_stmt **q, const char *sql);

/* A file in the folder, whose missing parents are made; end it with formats_close in any case. DATA when the name leads
 * out of the folder. */
typedef struct formats_file {
    file_writer writer;
    FILE *text; /* NULL: it could not be opened */
} formats_file;
status formats_open(const formats *f, formats_file *out, const char *name);

/* It is whole where so_far is OK and all could be written; else it is no more. Returns the first failure. */
status formats_close(const formats *f, formats_file *file, status so_far);

/* A run, and when its steps were. */
typedef struct formats_run {
    const formats *formats;
    int64_t run_id;
    char uuid[40], name[128];
    double started_s, ended_s; /* since 1970; ended_s < 0: not yet */
    struct formats_time {
        int64_t step;
        double s; /* since the beginning */
    } * times;    /* [count], by step */
    int64_t count;
} formats_run;

/* Since 1970. */
double formats_time_s(const formats_run *run, int64_t step);

typedef status (*formats_take)(void *user, const char *key, int64_t step, double value);

/* Hands out all curves of the run, one after the other, each by step. */
status formats_curves(const formats_run *run, formats_take take, void *user);

status formats_csv(const formats *f);
status formats_tensorboard(const formats_run *run);
status formats_mlflow(const formats_run *run);
