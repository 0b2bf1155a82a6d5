/* The question `compare` asked of every run, its rows gathered by group. */
#include "diag/compare.h"

#include "diag/findings_statistics.h"
#include "diag/query.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the comparison");
}

void compare_mean(const double *x, int n, double *mean, double *half_width) {
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    *mean = n > 0 ? sum / n : NAN;
    for (int i = 0; i < n; i++) squares += (x[i] - *mean) * (x[i] - *mean);
    *half_width = n > 1 ? findings_student_quantile(0.025, n - 1) * sqrt(squares / (n - 1) / n) : NAN;
}

/* The columns of `compare` that say what a run came to; the others say which it is. */
static bool is_measured(const char *name) {
    static const char *const others[] = {"run", "variant", "step", "layers"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcmp(name, others[i]) == 0) return false;
    return true;
}

/* ---------------------------------------------------------------- columns */

/* NAME or NAME_ci95; what is made belongs to made [*count]. */
static status add_name(char **made, int *count, const char *name, const char *ending) {
    size_t room = strlen(name) + strlen(ending) + 1;
    char *text = made[*count] = malloc(room);
    if (!text) return out_of_memory();
    snprintf(text, room, "%s%s", name, ending);
    ++*count;
    return STATUS_OK;
}

static status set_columns(const table *facts, const char *const *names, int names_count, bool joined, table *out) {
    int count = 0;
    char **all = calloc((size_t)(names_count + 1 + 2 * facts->columns), sizeof *all);
    status s = all ? STATUS_OK : out_of_memory();
    for (int i = 0; s == STATUS_OK && i < names_count; i++) s = add_name(all, &count, names[i], "");
    if (s == STATUS_OK) s = add_name(all, &count, "runs", "");
    for (int i = 0; s == STATUS_OK && i < facts->columns; i++) {
        if (!is_measured(facts->names[i])) continue;
        s = add_name(all, &count, facts->names[i], "");
        if (s == STATUS_OK && !joined) s = add_name(all, &count, facts->names[i], "_ci95");
    }
    if (s == STATUS_OK) s = table_set_columns(out, (const char *const *)all, count);
    for (int i = 0; i < count; i++) free(all[i]);
    free(all);
    return s;
}

/* ---------------------------------------------------------------- cells */

static table_cell real_cell(double x) {
    return isnan(x) ? (table_cell){.kind = CELL_NULL} : (table_cell){.kind = CELL_REAL, .real = x};
}

static status text_cell(const char *text, table_cell *to) {
    *to = (table_cell){.kind = CELL_TEXT, .text = strdup(text)};
    return to->text ? STATUS_OK : out_of_memory();
}

/* As many decimals as make four significant digits of x. */
static int decimals_of(double x) {
    int before = fabs(x) >= 1 ? (int)floor(log10(fabs(x))) + 1 : 1;
    return before < 4 ? 4 - before : 0;
}

static status joined_cell(double mean, double half_width, table_cell *to) {
    char text[80];
    *to = (table_cell){.kind = CELL_NULL};
    if (isnan(mean)) return STATUS_OK;
    int decimals = decimals_of(mean);
    if (isnan(half_width))
        snprintf(text, sizeof text, "%.*f", decimals, mean);
    else if (half_width < 1)
        snprintf(text, sizeof text, "%.*f ± %.2g", decimals, mean, half_width);
    else
        snprintf(text, sizeof text, "%.*f ± %.*f", decimals, mean, decimals, half_width);
    return text_cell(text, to);
}

/* The numbers of a column in the rows of a group, into x; how many there are. */
static int gather(const table *facts, const compare_run *runs, int group, const char *name, double *x) {
    int n = 0;
    for (int i = 0; i < facts->rows; i++) {
        double value = table_number(facts, i, name);
        if (runs[i].group == group && !isnan(value)) x[n++] = value;
    }
    return n;
}

static status fill_row(const table *facts, const compare_run *runs, int group, const char *const *values,
                       int values_count, bool joined, double *x, table_cell *row) {
    int members = 0, at = 0;
    for (; at < values_count; at++)
        if (values[at]) TRY(text_cell(values[at], &row[at]));
    for (int i = 0; i < facts->rows; i++) members += runs[i].group == group;
    row[at++] = (table_cell){.kind = CELL_INTEGER, .integer = members};
    for (int i = 0; i < facts->columns; i++) {
        double mean, half_width;
        if (!is_measured(facts->names[i])) continue;
        compare_mean(x, gather(facts, runs, group, facts->names[i], x), &mean, &half_width);
        if (joined) {
            TRY(joined_cell(mean, half_width, &row[at++]));
        } else {
            row[at++] = real_cell(mean);
            row[at++] = real_cell(half_width);
        }
    }
    return STATUS_OK;
}

status compare_groups(const compare_run *runs, int count, const char *const *names, int names_count,
                      const char *const *values, int groups, bool joined, table *out) {
    const query_request request = {.question = "compare", .layer = -1, .step = -1};
    table facts = {0};
    status s = STATUS_OK;
    for (int i = 0; s == STATUS_OK && i < count; i++) {
        s = query_ask(&runs[i].database, 1, &request, &facts);
        if (s == STATUS_OK && facts.rows != i + 1)
            s = status_fail(STATUS_DATA, "%s holds %d runs, not one", runs[i].database, facts.rows - i);
    }
    double *x = calloc((size_t)count + 1, sizeof *x);
    if (s == STATUS_OK && !x) s = out_of_memory();
    if (s == STATUS_OK) s = set_columns(&facts, names, names_count, joined, out);
    for (int g = 0; s == STATUS_OK && g < groups; g++) {
        table_cell *row;
        s = table_new_row(out, &row);
        if (s == STATUS_OK)
            s = fill_row(&facts, runs, g, values + (size_t)g * (size_t)names_count, names_count, joined, x, row);
    }
    free(x);
    table_free(&facts);
    return s;
}
