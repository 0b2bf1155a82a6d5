/* Questions to run databases: ready-made ones, and read-only SQL. Nothing is ever written.
 *
 * Several databases are asked one after the other and their rows are put below each other; a first column `database`
 * then says where a row is from (`bulkhead merge` unites databases for questions across runs). */
#pragma once

#include "diag/table.h"

typedef struct query_request {
    const char *question;           /* layers, heads, runs, compare, spikes, events; NULL with sql */
    const char *sql;                /* one SELECT */
    const char *form, *part, *stat; /* score, full and median unless set */
    int64_t layer, step;            /* -1: all layers; the last snapshot */
    table_format format;
} query_request;

/* One question's name and what it tells; NULL behind the last. */
const char *query_question_name(int index);
const char *query_question_help(int index);

/* Asks every database (or run folder); their rows come behind those that *out has. Failures as of query_run. */
status query_ask(const char *const *paths, int count, const query_request *request, table *out);

/* Asks every database (or run folder) and prints. NO_INPUT when one is missing, DATA when one is no database of ours,
 * USAGE for wrong SQL and SQL that would write. */
status query_run(const char *const *paths, int count, const query_request *request, FILE *out);
