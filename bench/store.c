/* bench_store: the budgets of docs/design.md section 7 on databases as runs leave them, with every column that a row
 * usually has.
 *
 * usage: bench_store [SNAPSHOTS [FOLDER]]     1000 snapshots, in a folder of its own below FOLDER (/tmp)
 * First a run of 512 heads in two forms, 1,024 rows a snapshot: writing, bytes a row, a layer x step heat map. Then 9
 * runs of 144 heads, three seeds of each variant, merged: the time of merging, and variants x steps over the seeds.
 * What is read back is compared with what was written before a time is printed. JSON lines, medians in ms. */
#include "diag/store.h"
#include "bench/times.h"
#include "core/clock.h"
#include "core/rng.h"
#include "diag/merge.h"

#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_SNAPSHOTS = 5000, RUNS = 9, READS = 5 };
static const int64_t NULL_ID = ((int64_t)1 << 46) + 1; /* as long in the file as those of runs */

typedef struct bench {
    char folder[256];
    int snapshots;
    double write_ms[MOST_SNAPSHOTS];
} bench;

/* A run's matrices: one row of spectra each. */
typedef struct shape {
    int layers, heads, forms;
} shape;

static double now_ms(void) {
    return 1e3 * clock_now_s();
}

static double uniform(int64_t step, int64_t i) {
    return (double)(rng_u64(7, (uint64_t)step, (uint64_t)i) >> 11) * 0x1p-53;
}

/* A head of a trained layer: what has no value there (gains-kept columns, outliers_below, top_overlap) is NULL. */
static void fill_row(spectrum *row, int64_t step, int index) {
    static const int absent[] = {SPECTRUM_outliers_below, SPECTRUM_tw_score_gains, SPECTRUM_z_effective_rank_rest_gains,
                                 SPECTRUM_top_overlap};
    spectrum_clear(row, SPECTRUM_STATUS_ok);
    for (int c = 0; c < SPECTRUM_COLUMN_COUNT; c++) {
        double x = uniform(step, (int64_t)index * SPECTRUM_COLUMN_COUNT + c);
        row->column[c] = spectrum_columns[c].integer ? floor(64 * x) : x;
    }
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) row->column[absent[i]] = NAN;
    row->mp_lambda_minus = 0;
    row->null_id = NULL_ID;
}

static int list_matrices(maps_matrix *out, shape s) {
    int count = 0;
    for (int form = 0; form < s.forms; form++)
        for (int layer = 0; layer < s.layers; layer++)
            for (int h = 0; h < s.heads; h++)
                out[count++] = (maps_matrix){.form = form,
                                             .scope = MAPS_head,
                                             .layer = layer,
                                             .head = h,
                                             .tensor = "",
                                             .rows = 64,
                                             .cols = 64,
                                             .rank = 64};
    return count;
}

/* Writes a run; its times go to b->write_ms. */
static status write_run(bench *b, const char *path, const char *variant, int seed, shape s) {
    config c = {0};
    char seed_text[32], variant_text[64];
    const char *settings[] = {"model.size=tiny", variant_text, seed_text};
    snprintf(variant_text, sizeof variant_text, "attention.variant=%s", variant);
    snprintf(seed_text, sizeof seed_text, "run.seed=%d", seed);
    TRY(config_load(&c, NULL, settings, 3));
    maps_matrix *matrices = calloc((size_t)(s.forms * s.layers * s.heads), sizeof *matrices);
    if (!matrices) return status_fail(STATUS_INTERNAL, "out of memory");
    int count = list_matrices(matrices, s);
    const store_session session = {.config = &c,
                                   .device = "cpu",
                                   .hosts = "",
                                   .code_version = "",
                                   .tp = 1,
                                   .dp = 1,
                                   .matrices = matrices,
                                   .matrix_count = count};
    store *to = NULL;
    status result = store_open(&to, path, &session);
    if (result == STATUS_OK)
        store_add(to, &(store_record){.kind = STORE_NULL, .null = {.null_id = NULL_ID, .key = "bench"}});
    for (int i = 0; i < b->snapshots && result == STATUS_OK; i++) {
        store_record r = {.kind = STORE_SNAPSHOT, .snapshot = {.step = 10 * i, .status = "done"}};
        r.snapshot.rows = malloc((size_t)count * sizeof(spectrum));
        if (!r.snapshot.rows) {
            result = status_fail(STATUS_INTERNAL, "out of memory");
            break;
        }
        for (int k = 0; k < count; k++) fill_row(&r.snapshot.rows[k], 10 * i + seed, k);
        double start = now_ms();
        store_add(to, &r);
        result = store_flush(to);
        b->write_ms[i] = now_ms() - start;
    }
    status closed = store_close(to);
    free(matrices);
    config_free(&c);
    return result == STATUS_OK ? closed : result;
}

typedef struct answer {
    int64_t rows;
    double sum, ms;
} answer;

/* Rows and the sum of the last column; the median time of a few times, the first of which finds no page in memory. */
static status ask(const char *path, const char *sql, answer *out) {
    sqlite3 *db = NULL;
    sqlite3_stmt *q = NULL;
    double ms[READS];
    int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL);
    for (int i = 0; i < READS && rc == SQLITE_OK; i++) {
        *out = (answer){0};
        double start = now_ms();
        rc = sqlite3_prepare_v2(db, sql, -1, &q, NULL);
        while (rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW) {
            out->rows++;
            out->sum += sqlite3_column_double(q, sqlite3_column_count(q) - 1);
        }
        if (rc == SQLITE_OK) rc = sqlite3_finalize(q);
        ms[i] = now_ms() - start;
    }
    status s = rc == SQLITE_OK ? STATUS_OK : status_fail(STATUS_INTERNAL, "%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
    out->ms = times_median(ms, READS);
    return s;
}

static status expect(const char *what, const answer *got, int64_t rows, double sum) {
    if (got->rows == rows && fabs(got->sum - sum) <= 1e-9 * fabs(sum)) return STATUS_OK;
    return status_fail(STATUS_INTERNAL, "%s: %lld rows with the sum %.17g, not %lld with %.17g", what,
                       (long long)got->rows, got->sum, (long long)rows, sum);
}

/* The median stable rank of a layer's heads, as write_run made them. */
static double layer_value(int64_t step, int layer, int heads) {
    double x[64];
    for (int h = 0; h < heads; h++)
        x[h] = uniform(step, (int64_t)(layer * heads + h) * SPECTRUM_COLUMN_COUNT + SPECTRUM_stable_rank);
    times_sort(x, heads);
    return 0.5 * (x[(heads - 1) / 2] + x[heads / 2]);
}

static status one_run(bench *b) {
    static const shape large = {16, 32, 2};
    char path[300];
    struct stat info;
    answer rows = {0}, pages = {0}, map = {0};
    double sum = 0;
    snprintf(path, sizeof path, "%s/run.db", b->folder);
    TRY(write_run(b, path, "mha", 0, large));
    if (stat(path, &info) != 0) return status_fail(STATUS_IO, "%s is gone", path);
    int64_t spectra = (int64_t)b->snapshots * large.forms * large.layers * large.heads;
    int64_t layer_rows = (int64_t)b->snapshots * large.forms * large.layers * 2;
    TRY(ask(path, "SELECT count(*) FROM spectra", &rows));
    TRY(expect("rows of spectra", &rows, 1, (double)spectra));
    TRY(ask(path, "SELECT sum(pgsize) FROM dbstat WHERE name = 'spectra'", &pages));
    TRY(ask(path,
            "SELECT step, layer, stable_rank FROM layer_spectra WHERE run_id = 1 AND form = 'score' AND part = 'full'"
            " AND stat = 'median'",
            &map));
    for (int i = 0; i < b->snapshots; i++)
        for (int layer = 0; layer < large.layers; layer++) sum += layer_value(10 * i, layer, large.heads);
    TRY(expect("the heat map", &map, (int64_t)b->snapshots * large.layers, sum));
    printf("{\"bench\":\"store\",\"rows\":%d,\"snapshots\":%d,\"write_ms\":%.2f,\"largest_write_ms\":%.2f,"
           "\"bytes_per_row_spectra\":%.1f,\"bytes_per_row_file\":%.1f,\"heat_map_ms\":%.2f}\n",
           large.forms * large.layers * large.heads, b->snapshots, times_median(b->write_ms, b->snapshots),
           b->write_ms[b->snapshots - 1], pages.sum / (double)spectra,
           (double)info.st_size / (double)(spectra + layer_rows), map.ms);
    return STATUS_OK;
}

/* Each run's range of layer_spectra by its key, one column; the view averages all columns, asked for or not. */
static const char compare_sql[] =
    "SELECT r.variant, l.step, count(DISTINCT l.run_id), avg(l.stable_rank) FROM runs r CROSS JOIN layer_spectra l"
    " USING(run_id) WHERE l.form = 'score' AND l.part = 'full' AND l.stat = 'median' GROUP BY 1, 2";

static status merged_runs(bench *b) {
    static const shape small = {12, 12, 1};
    static const char *const variants[] = {"mha", "mla-prerope", "mla-decoupled"};
    char paths[RUNS][300], merged[300];
    const char *sources[RUNS];
    double sum = 0;
    for (int i = 0; i < RUNS; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/run-%d.db", b->folder, i);
        sources[i] = paths[i];
        TRY(write_run(b, paths[i], variants[i / 3], i % 3, small));
    }
    snprintf(merged, sizeof merged, "%s/all.db", b->folder);
    merge_counts counts;
    double start = now_ms();
    TRY(merge_databases(sources, RUNS, merged, &counts));
    double merge_ms = now_ms() - start;
    answer compare = {0}, view = {0};
    TRY(ask(merged, compare_sql, &compare));
    TRY(ask(merged,
            "SELECT variant, step, runs, stable_rank FROM v_variant_compare WHERE form = 'score' AND part = 'full'"
            " AND stat = 'median'",
            &view));
    for (int i = 0; i < b->snapshots; i++)
        for (int seed = 0; seed < 3; seed++)
            for (int layer = 0; layer < small.layers; layer++)
                sum +=
                    layer_value(10 * i + seed, layer, small.heads) / small.layers; /* 3 variants, means over 3 seeds */
    TRY(expect("variants x steps", &compare, (int64_t)3 * b->snapshots, sum));
    TRY(expect("v_variant_compare", &view, (int64_t)3 * b->snapshots, sum));
    printf("{\"bench\":\"store\",\"runs\":%d,\"rows\":%d,\"snapshots\":%d,\"merge_ms\":%.0f,\"compare_ms\":%.1f,"
           "\"compare_view_ms\":%.1f}\n",
           RUNS, small.forms * small.layers * small.heads, b->snapshots, merge_ms, compare.ms, view.ms);
    return STATUS_OK;
}

static void clean_up(const bench *b) {
    char path[320];
    for (int i = 0; i < RUNS + 2; i++) {
        if (i < RUNS)
            snprintf(path, sizeof path, "%s/run-%d.db", b->folder, i);
        else
            snprintf(path, sizeof path, "%s/%s.db", b->folder, i == RUNS ? "run" : "all");
        unlink(path);
    }
    rmdir(b->folder);
}

int main(int argc, char **argv) {
    static bench b;
    status s = STATUS_OK;
    b.snapshots = argc > 1 ? atoi(argv[1]) : 1000;
    snprintf(b.folder, sizeof b.folder, "%s/bulkhead-bench-XXXXXX", argc > 2 ? argv[2] : "/tmp");
    if (b.snapshots < 1 || b.snapshots > MOST_SNAPSHOTS || argc > 3)
        s = status_fail(STATUS_USAGE, "bench_store [SNAPSHOTS [FOLDER]], snapshots from 1 to %d", MOST_SNAPSHOTS);
    else if (!mkdtemp(b.folder))
        s = status_fail(STATUS_IO, "cannot make a folder %s", b.folder);
    if (s == STATUS_OK) {
        s = one_run(&b);
        if (s == STATUS_OK) s = merged_runs(&b);
        clean_up(&b);
    }
    if (s != STATUS_OK) fprintf(stderr, "bench_store: %s\n", status_message());
    return s;
}
