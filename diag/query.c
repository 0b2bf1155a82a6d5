/* Ready-made questions as SQL, and the table that a first run ends with. */
#include "diag/query.h"

#include "diag/reading.h"

#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

enum { SUMMARY_COLUMNS = 4 };

/* ---------------------------------------------------------------- the questions */

/* What a run came to; run_id of r. The unigram entropy is the loss of a model that knows only how often each token
 * occurs. */
#define RUN_FACTS                                                                                                      \
    "r.name AS run, r.variant,"                                                                                        \
    " (SELECT loss FROM eval_metrics e WHERE e.run_id = r.run_id AND split = 'validation' ORDER BY step DESC LIMIT 1)" \
    " AS validation_loss,"                                                                                             \
    " (SELECT perplexity FROM eval_metrics e WHERE e.run_id = r.run_id AND split = 'validation'"                       \
    " ORDER BY step DESC LIMIT 1) AS perplexity,"                                                                      \
    " (SELECT tokens_per_s FROM (SELECT tokens_per_s, row_number() OVER (ORDER BY tokens_per_s) AS place, count(*) "   \
    "OVER () AS n"                                                                                                     \
    " FROM train_metrics t WHERE t.run_id = r.run_id AND tokens_per_s IS NOT NULL) WHERE place = (n + 1) / 2) AS "     \
    "tokens_per_s"

#define UNIGRAM_ENTROPY                                                                                                \
    "coalesce((SELECT loss FROM eval_metrics e WHERE e.run_id = r.run_id AND split = 'unigram' ORDER BY step DESC "    \
    "LIMIT 1),"                                                                                                        \
    " (SELECT CAST(value AS REAL) FROM params p WHERE p.run_id = r.run_id AND key = 'data.unigram_entropy_nats'))"     \
    " AS unigram_entropy"

#define FIRST_AND_LAST(name) "a." name " AS " name "_first, b." name " AS " name "_last"

static const char sql_layers[] =
    "WITH ends AS (SELECT run_id, min(step) AS first, max(step) AS last FROM layer_spectra"
    " WHERE form = :form AND part = :part AND stat = :stat GROUP BY run_id)"
    " SELECT " RUN_FACTS ", " UNIGRAM_ENTROPY ", a.layer, a.step AS step_first, b.step AS step_last,"
    " " FIRST_AND_LAST("outlier_energy") ", " FIRST_AND_LAST("mp_gap") ", " FIRST_AND_LAST(
        "stable_rank") ","
                       " " FIRST_AND_LAST(
                           "effective_rank") " FROM runs r LEFT JOIN ends ON ends.run_id = r.run_id LEFT JOIN "
                                             "layer_spectra a ON a.run_id = r.run_id"
                                             " AND a.form = :form AND a.part = :part AND a.stat = :stat AND a.step = "
                                             "ends.first AND :layer IN (-1, a.layer)"
                                             " LEFT JOIN layer_spectra b ON b.run_id = r.run_id AND b.form = :form AND "
                                             "b.part = :part AND b.stat = :stat"
                                             " AND b.step = ends.last AND b.layer = a.layer ORDER BY r.run_id, a.layer";

static const char sql_heads[] =
    "SELECT run, step, layer, head, status, outlier_energy, mp_gap, outliers_above, stable_rank, effective_rank,"
    " effective_rank_rest, spectral_gap, numerical_rank, lambda_max FROM v_spectra"
    " WHERE form = :form AND part = :part AND scope = 'head' AND :layer IN (-1, layer)"
    " AND step = CASE :step WHEN -1 THEN (SELECT max(step) FROM snapshots WHERE status = 'done') ELSE :step END"
    " ORDER BY run_id, layer, head";

static const char sql_runs[] =
    "SELECT r.run_id, r.status, r.started_at, r.seed, " RUN_FACTS ","
    " (SELECT max(step) FROM train_metrics t WHERE t.run_id = r.run_id) AS last_step,"
    " (SELECT count(*) FROM snapshots s WHERE s.run_id = r.run_id AND s.status = 'done') AS snapshots,"
    " (SELECT count(*) FROM snapshots s WHERE s.run_id = r.run_id AND s.status IN ('dropped', 'failed')) AS missed,"
    " (SELECT count(*) FROM sessions x WHERE x.run_id = r.run_id) AS sessions FROM runs r ORDER BY r.run_id";

static const char sql_compare[] =
    "SELECT " RUN_FACTS ", l.step, avg(l.outlier_energy) AS outlier_energy, avg(l.mp_gap) AS mp_gap,"
    " avg(l.stable_rank) AS stable_rank, avg(l.effective_rank) AS effective_rank,"
    " (SELECT count(*) FROM v_spike_onset o WHERE o.run_id = r.run_id AND o.form = :form AND o.part = :part)"
    " AS layers_with_spikes, count(l.layer) AS layers"
    " FROM runs r LEFT JOIN layer_spectra l ON l.run_id = r.run_id AND l.form = :form AND l.part = :part AND l.stat = "
    ":stat"
    " AND l.step = CASE :step WHEN -1 THEN (SELECT max(step) FROM layer_spectra m WHERE m.run_id = r.run_id"
    " AND m.form = :form AND m.part = :part AND m.stat = :stat) ELSE :step END"
    " GROUP BY r.run_id ORDER BY r.variant, r.run_id";

static const char sql_spikes[] =
    "SELECT r.name AS run, r.variant, l.layer, min(CASE WHEN l.mp_gap > 1 THEN l.step END) AS first_step,"
    " sum(l.mp_gap > 1) AS snapshots_over, count(*) AS snapshots, max(l.mp_gap) AS largest_gap,"
    " max(l.outlier_energy) AS largest_energy FROM layer_spectra l JOIN runs r USING(run_id)"
    " WHERE l.stat = 'max' AND l.form = :form AND l.part = :part AND :layer IN (-1, l.layer)"
    " GROUP BY l.run_id, l.layer ORDER BY l.run_id, l.layer";

static const char sql_events[] = "SELECT r.name AS run, e.attempt, e.seq, e.time, e.step, e.level, e.kind, e.message"
                                 " FROM events e JOIN runs r USING(run_id) ORDER BY e.run_id, e.attempt, e.seq";

typedef struct question {
    const char *name, *help, *sql, *legend; /* legend: below the aligned table */
} question;

static const question questions[] = {
    {"layers", "each layer at the first and the last snapshot", sql_layers, NULL},
    {"heads", "each head at one step (--layer, --step)", sql_heads, NULL},
    {"runs", "what each run is and came to", sql_runs, NULL},
    {"compare", "runs side by side, means over the layers", sql_compare,
     "outlier_energy to effective_rank: means over the layers at that step. layers_with_spikes: layers where some head "
     "ever\n"
     "passed the naive Marchenko-Pastur edge."},
    {"spikes", "from which step on a head of each layer is over the naive MP edge", sql_spikes,
     "first_step: first snapshot where one head's largest eigenvalue passes the naive Marchenko-Pastur edge (mp_gap > "
     "1).\n"
     "Products of noise may pass it, and spikes may stay below: a place to look, no finding."},
    {"events", "checkpoints, drops, faults", sql_events, NULL},
};

enum { QUESTIONS = sizeof(questions) / sizeof(*questions) };

const char *query_question_name(int index) {
    return index < QUESTIONS ? questions[index].name : NULL;
}
const char *query_question_help(int index) {
    return index < QUESTIONS ? questions[index].help : NULL;
}

static const question *find_question(const char *name) {
    for (int i = 0; i < QUESTIONS; i++)
        if (strcmp(questions[i].name, name) == 0) return &questions[i];
    return NULL;
}

/* ---------------------------------------------------------------- asking */

static void bind_text(sqlite3_stmt *q, const char *name, const char *value) {
    int index = sqlite3_bind_parameter_index(q, name);
    if (index > 0) sqlite3_bind_text(q, index, value, -1, SQLITE_STATIC);
}

static void bind_int(sqlite3_stmt *q, const char *name, int64_t value) {
    int index = sqlite3_bind_parameter_index(q, name);
    if (index > 0) sqlite3_bind_int64(q, index, value);
}

static void bind_request(sqlite3_stmt *q, const query_request *r) {
    bind_text(q, ":form", r->form ? r->form : "score");
    bind_text(q, ":part", r->part ? r->part : "full");
    bind_text(q, ":stat", r->stat ? r->stat : "median");
    bind_int(q, ":layer", r->layer);
    bind_int(q, ":step", r->step);
}

/* Prepares one reading statement; what else a person may write is refused with the reason. */
static status prepare(sqlite3 *db, const char *sql, sqlite3_stmt **q) {
    const char *rest = NULL;
    if (sqlite3_prepare_v2(db, sql, -1, q, &rest) != SQLITE_OK)
        return status_fail(STATUS_USAGE, "SQL: %s", sqlite3_errmsg(db));
    if (!*q) return status_fail(STATUS_USAGE, "SQL: there is no statement in \"%s\"", sql);
    if (rest[strspn(rest, " \t\r\n;")])
        return status_fail(STATUS_USAGE, "SQL: one statement at a time, and this follows: %s", rest);
    if (!sqlite3_stmt_readonly(*q) || sqlite3_column_count(*q) == 0)
        return status_fail(STATUS_USAGE,
                           "SQL: queries only read; use the sqlite3 program on a copy to change a database");
    return STATUS_OK;
}

static status ask(sqlite3 *db, const char *path, const char *sql, const query_request *r, const char *source,
                  table *t) {
    sqlite3_stmt *q = NULL;
    status s = prepare(db, sql, &q);
    if (s == STATUS_OK) s = table_name_columns(t, q, source);
    if (s == STATUS_OK) bind_request(q, r);
    while (s == STATUS_OK) {
        int rc = sqlite3_step(q);
        if (rc == SQLITE_DONE) break;
        if (rc == SQLITE_ROW)
            s = table_add(t, q, source);
        else
            s = (rc & 0xff) == SQLITE_ERROR ? status_fail(STATUS_USAGE, "SQL: %s", sqlite3_errmsg(db))
                                            : reading_failure(path, db, rc);
    }
    sqlite3_finalize(q);
    return s;
}

/* ---------------------------------------------------------------- the layers table */

typedef struct summary_column {
    const char *title, *first, *last;
    int decimals;
} summary_column;

static const summary_column summary[SUMMARY_COLUMNS] = {
    {"outlier energy", "outlier_energy_first", "outlier_energy_last", 3},
    {"MP gap", "mp_gap_first", "mp_gap_last", 2},
    {"stable rank", "stable_rank_first", "stable_rank_last", 1},
    {"effective rank", "effective_rank_first", "effective_rank_last", 1},
};

static const char *text_at(const table *t, int row, const char *name) {
    const table_cell *c = table_cell_at(t, row, name);
    return c->kind == CELL_TEXT ? c->text : "";
}

static void print_fact(FILE *out, const table *t, int row, const char *name, const char *format) {
    double x = table_number(t, row, name);
    if (!isnan(x)) fprintf(out, format, x);
}

static void print_number(FILE *out, double x, int decimals, int width) {
    if (isnan(x))
        fprintf(out, "%*s", width, "-");
    else
        fprintf(out, "%*.*f", width, decimals, x);
}

/* A run with one snapshot: its first is its last. */
static bool has_one_step(const table *t, int row) {
    return !(table_number(t, row, "step_first") < table_number(t, row, "step_last"));
}

/* The run's line, and the two lines above its numbers. */
static void print_run_head(FILE *out, const table *t, int row) {
    const char *source = text_at(t, row, "database");
    fprintf(out, "%s%s%s%s (%s)", row ? "\n" : "", source, source[0] ? ": " : "", text_at(t, row, "run"),
            text_at(t, row, "variant"));
    print_fact(out, t, row, "validation_loss", "   validation loss %.4f");
    print_fact(out, t, row, "perplexity", " (perplexity %.1f)");
    print_fact(out, t, row, "unigram_entropy", "   unigram entropy %.4f");
    print_fact(out, t, row, "tokens_per_s", "   %.0f tokens/s");
    fputs("\n", out);
    if (table_cell_at(t, row, "layer")->kind == CELL_NULL) {
        fputs("  no snapshot of this form and part is recorded\n", out);
        return;
    }
    fprintf(out, "%5s", "");
    for (int i = 0; i < SUMMARY_COLUMNS; i++) fprintf(out, "  %20s", summary[i].title);
    fprintf(out, "\n%5s", "layer");
    for (int i = 0; i < SUMMARY_COLUMNS; i++) {
        char first[24], last[24];
        snprintf(first, sizeof(first), "step %.0f", table_number(t, row, "step_first"));
        snprintf(last, sizeof(last), "step %.0f", table_number(t, row, "step_last"));
        fprintf(out, "  %10s%10s", has_one_step(t, row) ? "" : first, last);
    }
    fputs("\n", out);
}

static void print_layers(const table *t, const query_request *r, FILE *out) {
    for (int row = 0; row < t->rows; row++) {
        double layer = table_number(t, row, "layer");
        bool new_run = row == 0 || strcmp(text_at(t, row, "run"), text_at(t, row - 1, "run")) != 0 ||
                       strcmp(text_at(t, row, "database"), text_at(t, row - 1, "database")) != 0 ||
                       !(layer > table_number(t, row - 1, "layer"));
        if (new_run) print_run_head(out, t, row);
        if (isnan(layer)) continue;
        fprintf(out, "%5.0f", layer);
        for (int i = 0; i < SUMMARY_COLUMNS; i++) {
            fputs("  ", out);
            if (has_one_step(t, row))
                fprintf(out, "%10s", "");
            else
                print_number(out, table_number(t, row, summary[i].first), summary[i].decimals, 10);
            print_number(out, table_number(t, row, summary[i].last), summary[i].decimals, 10);
        }
        fputs("\n", out);
    }
    const char *stat = r->stat ? r->stat : "median";
    fprintf(
        out,
        "\nOf the %s form, part %s, %s: outlier energy is the share above the Marchenko-Pastur edge, MP gap the "
        "largest\n"
        "eigenvalue over that edge (untrained products may be above 1 as well), stable and effective rank how many\n"
        "directions carry the map.\n",
        r->form ? r->form : "score", r->part ? r->part : "full",
        strcmp(stat, "layer") == 0 ? "the layer as a whole"
        : strcmp(stat, "max") == 0 ? "maximum over heads"
                                   : "median over heads");
}

/* ---------------------------------------------------------------- the door */

static status check_request(const query_request *r) {
    static const char *const forms[] = {"score", "channel", NULL}, *const parts[] = {"full", "content", "rope", NULL},
                             *const stats[] = {"median", "max", "layer", NULL};
    const struct {
        const char *option, *value, *const *names;
    } options[] = {{"--form", r->form, forms}, {"--part", r->part, parts}, {"--stat", r->stat, stats}};
    for (int i = 0; i < 3; i++) {
        int k = 0;
        while (options[i].value && options[i].names[k] && strcmp(options[i].names[k], options[i].value) != 0) k++;
        if (options[i].value && !options[i].names[k])
            return status_fail(STATUS_USAGE, "%s: there is no \"%s\"; `bulkhead query --help` lists what there is",
                               options[i].option, options[i].value);
    }
    return STATUS_OK;
}

static status find_wanted(const query_request *request, const question **wanted) {
    *wanted = request->sql ? NULL : find_question(request->question);
    if (!request->sql && !*wanted)
        return status_fail(STATUS_USAGE, "there is no question \"%s\"; `bulkhead query --help` lists them",
                           request->question);
    return check_request(request);
}

status query_ask(const char *const *paths, int count, const query_request *request, table *out) {
    const question *wanted;
    TRY(find_wanted(request, &wanted));
    status s = STATUS_OK;
    for (int i = 0; i < count && s == STATUS_OK; i++) {
        sqlite3 *db = NULL;
        s = reading_open(paths[i], &db);
        if (s == STATUS_OK && wanted) s = reading_check(paths[i], db);
        if (s == STATUS_OK)
            s = ask(db, paths[i], wanted ? wanted->sql : request->sql, request, count > 1 ? paths[i] : NULL, out);
        sqlite3_close(db);
    }
    return s;
}

status query_run(const char *const *paths, int count, const query_request *request, FILE *out) {
    const question *wanted;
    table t = {0};
    TRY(find_wanted(request, &wanted));
    status s = query_ask(paths, count, request, &t);
    bool layers = wanted && strcmp(wanted->name, "layers") == 0 && request->format == TABLE_ALIGNED;
    if (s == STATUS_OK && layers)
        print_layers(&t, request, out);
    else if (s == STATUS_OK)
        table_print(&t, request->format, out);
    if (s == STATUS_OK && wanted && wanted->legend && request->format == TABLE_ALIGNED)
        fprintf(out, "\n%s\n", wanted->legend);
    table_free(&t);
    return s;
}
