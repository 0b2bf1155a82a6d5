/* Stored singular values to what the page shows of them. The rows of the chosen snapshots are read once, in order. */
#include "diag/report_esd.h"

#include "diag/reading.h"
#include "diag/report_bins.h"

#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

const double REPORT_ESD_LOW = 1e-3;

static const char *const edge_names[] = {"mp_lambda_minus", "mp_lambda_plus", "null_edge", "null_edge95", "tw_score"};
enum { EDGES = sizeof edge_names / sizeof *edge_names, TW_SCORE = EDGES - 1, MOST_RANK = 1 << 20 };

typedef struct snapshot {
    int64_t id, step;
} snapshot;

typedef struct chosen_head {
    int64_t layer, head;
    double *values; /* [steps, rank] ln x; NaN: no value */
    double *edges;  /* [EDGES, steps] */
} chosen_head;

typedef struct esd {
    snapshot *at; /* [steps] */
    int64_t stored;
    int steps, layers, rank;
    double *shares, *rows; /* [steps, layers, bins] counts, then shares; [steps, layers] how many values */
    report_grid edges;     /* of [EDGES, layers] over the steps */
    chosen_head heads[REPORT_ESD_HEADS];
    int head_count;
} esd;

static double *absent(size_t n) {
    double *values = malloc((n + 1) * sizeof *values);
    for (size_t i = 0; values && i < n; i++) values[i] = NAN;
    return values;
}

/* ---------------------------------------------------------------- which */

#define FAMILY "m.run_id = ?1 AND m.form = ?2 AND m.part = ?3 AND m.scope = 'head'"

static status read_shape(const report_source *from, esd *e) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    status result = report_ask(
        from, "SELECT max(layer) + 1, max(min(rows, cols)) FROM matrices m WHERE layer >= 0 AND " FAMILY, &q);
    if (result == STATUS_OK) result = reading_row(from->path, from->db, q, &row);
    int64_t layers = row ? sqlite3_column_int64(q, 0) : 0, rank = row ? sqlite3_column_int64(q, 1) : 0;
    sqlite3_finalize(q);
    if (layers > REPORT_LAYERS) layers = REPORT_LAYERS;
    if (rank < 1 || rank > MOST_RANK) layers = 0;
    e->layers = (int)layers;
    e->rank = (int)rank;
    return result;
}

/* Of all that have values as many as the budget allows, evenly. */
static void choose_steps(const report_source *from, esd *e) {
    int64_t each = (int64_t)e->layers * (REPORT_ESD_BINS + EDGES) + REPORT_ESD_HEADS * ((int64_t)e->rank + EDGES);
    int64_t most = from->esd_bytes / each;
    if (most < 2) most = 2;
    e->steps = (int)(e->stored < most ? e->stored : most);
    for (int64_t i = 1; e->steps < e->stored && i < e->steps; i++)
        e->at[i] = e->at[i * (e->stored - 1) / (e->steps - 1)];
}

/* CROSS JOIN: in this order, so that a snapshot without values is one look into their index. */
static status read_steps(const report_source *from, esd *e) {
    sqlite3_stmt *q = NULL;
    status result = report_ask(from,
                               "SELECT s.snapshot_id, s.step FROM snapshots s WHERE s.run_id = ?1 AND EXISTS (SELECT 1"
                               " FROM esd e CROSS JOIN matrices m USING(matrix_id) WHERE e.snapshot_id = s.snapshot_id"
                               " AND " FAMILY ") ORDER BY s.step",
                               &q);
    while (result == STATUS_OK) {
        bool row;
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        if ((e->stored & (e->stored - 1)) == 0) { /* a power of two is full */
            size_t room = e->stored ? 2 * (size_t)e->stored : 1;
            snapshot *larger = realloc(e->at, room * sizeof *larger);
            if (!larger) result = report_out_of_memory();
            if (larger) e->at = larger;
        }
        if (result == STATUS_OK)
            e->at[e->stored++] = (snapshot){sqlite3_column_int64(q, 0), sqlite3_column_int64(q, 1)};
    }
    sqlite3_finalize(q);
    if (result == STATUS_OK) choose_steps(from, e);
    return result;
}

/* SELECT before, the rows of the chosen snapshots, after. */
static status ask_rows(const report_source *from, const esd *e, const char *before, const char *after,
                       sqlite3_stmt **q) {
    sqlite3_str *s = sqlite3_str_new(NULL);
    sqlite3_str_appendf(s, "SELECT %s FROM (SELECT s.step, m.layer, m.head, e.singular_values, ", before);
    for (int i = 0; i < EDGES; i++) {
        report_put_column(from, s, "spectra", edge_names[i]);
        sqlite3_str_appendall(s, ", ");
    }
    report_put_column(from, s, "spectra", "null_gap");
    sqlite3_str_appendall(s,
                          " FROM esd e JOIN matrices m USING(matrix_id) JOIN snapshots s USING(snapshot_id)"
                          " LEFT JOIN spectra p USING(snapshot_id, matrix_id) WHERE " FAMILY " AND e.snapshot_id IN (");
    for (int i = 0; i < e->steps; i++) sqlite3_str_appendf(s, "%s%lld", i ? ", " : "", (long long)e->at[i].id);
    sqlite3_str_appendf(s, ")) %s", after);
    char *sql = sqlite3_str_finish(s);
    status result = sql ? report_ask(from, sql, q) : report_out_of_memory();
    sqlite3_free(sql);
    return result;
}

static status choose_heads(const report_source *from, esd *e) {
    sqlite3_stmt *q = NULL;
    status result = ask_rows(from, e, "layer, head",
                             "GROUP BY layer, head ORDER BY max(tw_score) DESC NULLS LAST, max(null_gap) DESC NULLS"
                             " LAST, layer, head",
                             &q);
    while (result == STATUS_OK && e->head_count < REPORT_ESD_HEADS) {
        bool row;
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        chosen_head *to = &e->heads[e->head_count++];
        *to = (chosen_head){.layer = sqlite3_column_int64(q, 0),
                            .head = sqlite3_column_int64(q, 1),
                            .values = absent((size_t)e->steps * (size_t)e->rank),
                            .edges = absent(EDGES * (size_t)e->steps)};
        if (!to->values || !to->edges) result = report_out_of_memory();
    }
    sqlite3_finalize(q);
    return result;
}

/* ---------------------------------------------------------------- the values */

static chosen_head *find_head(esd *e, int64_t layer, int64_t head) {
    for (int i = 0; i < e->head_count; i++)
        if (e->heads[i].layer == layer && e->heads[i].head == head) return &e->heads[i];
    return NULL;
}

/* ln x of a row's singular values [n <= rank] into x; *mean: their mean lambda. 0: it has none that are numbers. */
static int values_at(const esd *e, sqlite3_stmt *q, double *x, double *mean) {
    const void *blob = sqlite3_column_blob(q, 3);
    int bytes = sqlite3_column_bytes(q, 3), n = bytes / (int)sizeof *x;
    double sum = 0;
    if (!blob || n < 1 || n > e->rank || bytes % (int)sizeof *x) return 0;
    memcpy(x, blob, (size_t)bytes);
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    *mean = sum / n;
    if (!(*mean > 0 && isfinite(*mean))) return 0;
    for (int i = 0; i < n; i++) x[i] = log(fmax(x[i] * x[i] / *mean, REPORT_ESD_LOW));
    return n;
}

static double high(const esd *e) {
    return e->rank > 1 ? e->rank : 2;
}

static void count_values(esd *e, int step, int layer, const double *x, int n) {
    size_t cell = (size_t)step * (size_t)e->layers + (size_t)layer;
    double *counts = e->shares + cell * REPORT_ESD_BINS;
    double width = log(high(e) / REPORT_ESD_LOW) / REPORT_ESD_BINS;
    if (e->rows[cell] == 0) memset(counts, 0, REPORT_ESD_BINS * sizeof *counts);
    for (int i = 0; i < n; i++) {
        int bin = (int)((x[i] - log(REPORT_ESD_LOW)) / width);
        counts[bin < REPORT_ESD_BINS ? bin : REPORT_ESD_BINS - 1]++;
    }
    e->rows[cell] += n;
}

static status add_row(esd *e, int step, sqlite3_stmt *q, double *x) {
    int64_t layer = sqlite3_column_int64(q, 1), head = sqlite3_column_int64(q, 2);
    double mean;
    if (layer < 0 || layer >= e->layers) return STATUS_OK;
    int n = values_at(e, q, x, &mean);
    if (n == 0) return STATUS_OK;
    chosen_head *own = find_head(e, layer, head);
    count_values(e, step, (int)layer, x, n);
    if (own) memcpy(own->values + (size_t)step * (size_t)e->rank, x, (size_t)n * sizeof *x);
    for (int i = 0; i < EDGES; i++) {
        double edge = reading_real(q, 4 + i) / (i == TW_SCORE ? 1 : mean);
        if (own) own->edges[i * e->steps + step] = edge;
        TRY(report_grid_add(&e->edges, step, i * e->layers + (int)layer, edge));
    }
    return STATUS_OK;
}

static status read_values(const report_source *from, esd *e) {
    sqlite3_stmt *q = NULL;
    double *x = malloc(((size_t)e->rank + 1) * sizeof *x);
    status result = x ? ask_rows(from, e, "*", "ORDER BY step, layer, head", &q) : report_out_of_memory();
    for (int step = 0; result == STATUS_OK;) {
        bool row;
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        while (step + 1 < e->steps && e->at[step].step < sqlite3_column_int64(q, 0)) step++;
        result = add_row(e, step, q, x);
    }
    sqlite3_finalize(q);
    free(x);
    report_grid_finish(&e->edges);
    for (size_t i = 0, n = (size_t)e->steps * (size_t)e->layers * REPORT_ESD_BINS; i < n; i++)
        e->shares[i] /= e->rows[i / REPORT_ESD_BINS]; /* NaN where there is none */
    return result;
}

/* ---------------------------------------------------------------- as JSON */

/* edges: [EDGES, n], an edge for every layer and step or for every step. */
static json_t *edges_json(const double *edges, size_t n) {
    json_t *j = json_object();
    for (size_t i = 0; i < EDGES; i++) json_object_set_new(j, edge_names[i], report_coded(edges + i * n, n));
    return j;
}

/* The grid has the steps of a cell behind one another, the page the layers of a step. */
static json_t *layer_edges_json(const esd *e) {
    size_t n = (size_t)e->steps * (size_t)e->layers;
    double *edges = malloc((EDGES * n + 1) * sizeof *edges);
    if (!edges) return NULL;
    for (size_t i = 0; i < EDGES * n; i++) {
        size_t cell = i / (size_t)e->steps, step = i % (size_t)e->steps, layers = (size_t)e->layers;
        edges[cell / layers * n + step * layers + cell % layers] = e->edges.median[i];
    }
    json_t *j = edges_json(edges, n);
    free(edges);
    return j;
}

static json_t *heads_json(const esd *e) {
    json_t *heads = json_array();
    for (int i = 0; i < e->head_count; i++) {
        json_t *head = json_object();
        json_object_set_new(head, "layer", json_integer(e->heads[i].layer));
        json_object_set_new(head, "head", json_integer(e->heads[i].head));
        json_object_set_new(head, "values", report_coded(e->heads[i].values, (size_t)e->steps * (size_t)e->rank));
        json_object_set_new(head, "edges", edges_json(e->heads[i].edges, (size_t)e->steps));
        json_array_append_new(heads, head);
    }
    return heads;
}

static status put_esd(const esd *e, json_t *run) {
    json_t *j = json_object(), *steps = json_array();
    for (int i = 0; i < e->steps; i++) json_array_append_new(steps, json_integer(e->at[i].step));
    json_object_set_new(j, "stored", json_integer(e->stored));
    json_object_set_new(j, "steps", steps);
    json_object_set_new(j, "low", json_real(REPORT_ESD_LOW));
    json_object_set_new(j, "high", json_real(high(e)));
    json_object_set_new(j, "shares", report_coded(e->shares, (size_t)e->steps * (size_t)e->layers * REPORT_ESD_BINS));
    json_object_set_new(j, "edges", layer_edges_json(e));
    json_object_set_new(j, "heads", heads_json(e));
    return json_object_set_new(run, "esd", j) == 0 ? STATUS_OK : report_out_of_memory();
}

/* ---------------------------------------------------------------- all */

static status open_room(esd *e) {
    size_t cells = (size_t)e->steps * (size_t)e->layers;
    e->shares = absent(cells * REPORT_ESD_BINS);
    e->rows = calloc(cells + 1, sizeof *e->rows);
    TRY(report_grid_open(&e->edges, EDGES * e->layers, e->steps));
    return e->shares && e->rows ? STATUS_OK : report_out_of_memory();
}

static void close_room(esd *e) {
    for (int i = 0; i < e->head_count; i++) {
        free(e->heads[i].values);
        free(e->heads[i].edges);
    }
    report_grid_close(&e->edges);
    free(e->shares);
    free(e->rows);
    free(e->at);
}

static status fill(const report_source *from, esd *e) {
    TRY(read_shape(from, e));
    if (e->layers > 0) TRY(read_steps(from, e));
    TRY(open_room(e));
    if (e->steps > 0) TRY(choose_heads(from, e));
    return e->steps > 0 ? read_values(from, e) : STATUS_OK;
}

status report_esd(const report_source *from, json_t *run) {
    esd e = {0};
    status result = fill(from, &e);
    if (result == STATUS_OK) result = put_esd(&e, run);
    close_room(&e);
    return result;
}
