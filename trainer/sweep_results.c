/* What a sweep came to: its table of runs, one database, and the comparison over seeds. */
#include "core/file.h"
#include "core/shell.h"
#include "diag/compare.h"
#include "diag/merge.h"
#include "diag/run_status.h"
#include "trainer/sweep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the sweep's results");
}

static const char *value_of(const sweep_run *run, const char *key) {
    for (int i = 0; i < run->setting_count; i++)
        if (strcmp(run->settings[i].key, key) == 0) return run->settings[i].value;
    return NULL;
}

/* ---------------------------------------------------------------- the runs */

static status put_text(table_cell *to, const char *text) {
    if (!text) return STATUS_OK;
    *to = (table_cell){.kind = CELL_TEXT, .text = strdup(text)};
    return to->text ? STATUS_OK : out_of_memory();
}

static void put_number(table_cell *to, int64_t number) {
    if (number >= 0) *to = (table_cell){.kind = CELL_INTEGER, .integer = number};
}

static status put_command(table_cell *to, const sweep_run *run) {
    size_t bytes;
    *to = (table_cell){.kind = CELL_NULL};
    FILE *out = open_memstream(&to->text, &bytes);
    if (!out) return out_of_memory();
    sweep_print_command(run, out);
    if (fclose(out) != 0) return out_of_memory();
    to->kind = CELL_TEXT;
    return STATUS_OK;
}

void sweep_print_command(const sweep_run *run, FILE *out) {
    for (char **word = run->command; *word; word++) {
        if (word > run->command) fputc(' ', out);
        shell_print_word(out, *word);
    }
}

static status fill_row(const sweep *s, int index, bool whole, table_cell *row) {
    const sweep_run *run = &s->runs[index];
    int at = 0;
    put_number(&row[at++], index + 1);
    TRY(put_text(&row[at++], run->name));
    TRY(put_text(&row[at++], run->status));
    put_number(&row[at++], run->exit_code);
    put_number(&row[at++], run->ranks);
    for (int k = 0; k < s->key_count; k++) TRY(put_text(&row[at++], value_of(run, s->keys[k])));
    if (!whole) return STATUS_OK;
    TRY(put_command(&row[at++], run));
    return put_text(&row[at], run->last_line[0] ? run->last_line : NULL);
}

status sweep_table(const sweep *s, bool whole, table *out) {
    static const char *const before[] = {"number", "name", "status", "exit_code", "ranks"};
    enum { BEFORE = sizeof before / sizeof *before };
    const char **names = calloc((size_t)s->key_count + BEFORE + 2, sizeof *names);
    if (!names) return out_of_memory();
    int count = 0;
    for (; count < BEFORE; count++) names[count] = before[count];
    for (int k = 0; k < s->key_count; k++) names[count++] = s->keys[k];
    if (whole) {
        names[count++] = "command";
        names[count++] = "last_line";
    }
    status result = table_set_columns(out, names, count);
    free(names);
    for (int i = 0; result == STATUS_OK && i < s->count; i++) {
        table_cell *row;
        result = table_new_row(out, &row);
        if (result == STATUS_OK) result = fill_row(s, i, whole, row);
    }
    return result;
}

/* ---------------------------------------------------------------- one database */

status sweep_merge(const sweep *s, char **database) {
    const char **sources = calloc((size_t)s->count + 1, sizeof *sources);
    int count = 0;
    merge_counts counts;
    *database = NULL;
    status result = sources ? STATUS_OK : out_of_memory();
    for (int i = 0; result == STATUS_OK && i < s->count; i++) {
        run_status is;
        result = run_status_read(s->runs[i].dir, &is);
        if (result == STATUS_OK && is.word[0]) sources[count++] = s->runs[i].dir;
    }
    if (result == STATUS_OK && count > 0) {
        *database = file_join(s->folder, "sweep.db");
        result = *database ? merge_databases(sources, count, *database, &counts) : out_of_memory();
    }
    free(sources);
    return result;
}

/* ---------------------------------------------------------------- the comparison */

typedef struct grouping {
    const char **names; /* [count] of the keys: all but the seed */
    int count;
    const char **values; /* [groups, count] */
    int groups;
    compare_run *runs; /* [run_count] that have come to their end */
    int run_count;
} grouping;

static bool same(const char *a, const char *b) {
    return a == b || (a && b && strcmp(a, b) == 0);
}

/* The group of that run, a new one where there is none. */
static int group_of(grouping *g, const sweep_run *run) {
    for (int i = 0; i < g->groups; i++) {
        int k = 0;
        while (k < g->count && same(g->values[i * g->count + k], value_of(run, g->names[k]))) k++;
        if (k == g->count) return i;
    }
    for (int k = 0; k < g->count; k++) g->values[g->groups * g->count + k] = value_of(run, g->names[k]);
    return g->groups++;
}

static status make_groups(const sweep *s, grouping *g) {
    g->names = calloc((size_t)s->key_count + 1, sizeof *g->names);
    g->values = calloc((size_t)s->count * (size_t)s->key_count + 1, sizeof *g->values);
    g->runs = calloc((size_t)s->count + 1, sizeof *g->runs);
    if (!g->names || !g->values || !g->runs) return out_of_memory();
    for (int k = 0; k < s->key_count; k++)
        if (strcmp(s->keys[k], "run.seed") != 0) g->names[g->count++] = s->keys[k];
    for (int i = 0; i < s->count; i++) {
        int group = group_of(g, &s->runs[i]);
        if (sweep_is_done(&s->runs[i])) g->runs[g->run_count++] = (compare_run){s->runs[i].dir, group};
    }
    return STATUS_OK;
}

status sweep_compare(const sweep *s, bool joined, table *out) {
    grouping g = {0};
    status result = make_groups(s, &g);
    if (result == STATUS_OK)
        result = compare_groups(g.runs, g.run_count, g.names, g.count, g.values, g.groups, joined, out);
    free(g.names);
    free(g.values);
    free(g.runs);
    return result;
}
