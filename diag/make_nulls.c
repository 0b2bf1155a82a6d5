/* Makes diag/nulls_table.c: the ensembles of the heads of the named sizes, for weights as they are initialized and some
 * way around. The target make_nulls builds this program; it prints the table.
 *
 *     BULKHEAD_CACHE=FOLDER make_nulls [SIZE ...] > diag/nulls_table.c
 *
 * What is already in that cache folder is taken from there, and what is made is written there: so it may be stopped
 * and started again. The shipped table itself is not read. */
#include "diag/nulls_cache.h"
#include "diag/nulls_grid.h"
#include "diag/nulls_shape.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DRAWS = 16384, MOST_ENTRIES = 4096 };

/* How far around the initial log ratios: a score block's drift first, and its grid is one-dimensional. */
static const double SCORE_REACH = 0.1, OTHER_REACH = 0.03;

/* The table is empty here: what the program ships may be what is wrong. */
const nulls_entry nulls_table[1];
const int nulls_table_count = 0;

typedef struct work {
    nulls_cache *cache;
    char (*keys)[NULLS_KEY_BYTES]; /* [MOST_ENTRIES], in the table's order */
    int count;
} work;

static bool listed(const work *w, const char *key) {
    for (int i = 0; i < w->count; i++)
        if (strcmp(w->keys[i], key) == 0) return true;
    return false;
}

static status add_node(work *w, const nulls_shape *s, const double *node) {
    nulls_entry e = {.draws = DRAWS};
    nulls_key(e.key, s, node, DRAWS);
    if (listed(w, e.key) || w->count == MOST_ENTRIES) return STATUS_OK;
    memcpy(w->keys[w->count++], e.key, sizeof(e.key));
    if (nulls_cache_find(w->cache, e.key, &e.moments)) return STATUS_OK;
    fprintf(stderr, "%s\n", e.key);
    TRY(nulls_ensemble(s, node, DRAWS, NULLS_SEED, omp_get_max_threads(), NULL, &e.moments));
    return nulls_cache_add(w->cache, &e, true);
}

static status add_point(work *w, const nulls_shape *s, const double *log_ratio) {
    double at[NULLS_MOST_RATIOS] = {log_ratio[0], log_ratio[1]}, node[NULLS_MOST_NODES][NULLS_MOST_RATIOS];
    nulls_round(s, at);
    int count = nulls_nodes(s, at, node);
    for (int i = 0; i < count; i++) TRY(add_node(w, s, node[i]));
    return STATUS_OK;
}

/* All weights have the same variance at first, gains are 1. */
static void initial_ratios(const config *c, const nulls_shape *s, double *log_ratio) {
    double key = 0.5 * log((double)c->model.width / (double)c->attention.kv_lora_rank);
    log_ratio[0] = s->kind == NULLS_BLOCK && !s->channel ? key : 0;
    log_ratio[1] = s->kind == NULLS_BLOCK && s->channel ? key : 0;
}

static status add_shape(work *w, const config *c, const nulls_shape *s) {
    double start[NULLS_MOST_RATIOS], reach = s->kind == NULLS_BLOCK && !s->channel ? SCORE_REACH : OTHER_REACH;
    initial_ratios(c, s, start);
    for (int i = -1; i <= 1; i++)
        for (int j = -1; j <= 1; j++) TRY(add_point(w, s, (double[]){start[0] + i * reach, start[1] + j * reach}));
    return STATUS_OK;
}

static status add_size(work *w, const char *size, bool channel_blocks) {
    static const char *const variants[] = {"mha", "mla-prerope", "mla-decoupled"};
    for (int v = 0; v < 3; v++) {
        char model[64], variant[64];
        config c;
        snprintf(model, sizeof(model), "model.size=%s", size);
        snprintf(variant, sizeof(variant), "attention.variant=%s", variants[v]);
        TRY(config_load(&c, NULL, (const char *const[]){model, variant}, 2));
        status result = STATUS_OK;
        for (int form = MAPS_score; form <= MAPS_channel; form++)
            for (int part = MAPS_full; part <= MAPS_rope; part++) {
                nulls_shape s;
                maps_matrix m = {.form = form, .part = part, .scope = MAPS_head, .tensor = ""};
                if (part != MAPS_full && v != 2) continue;
                nulls_shape_of(&c, &m, &s);
                if (result == STATUS_OK && (s.kind == NULLS_BLOCK && s.channel) == channel_blocks)
                    result = add_shape(w, &c, &s);
            }
        config_free(&c);
        TRY(result);
    }
    return STATUS_OK;
}

static void print_number(double x) {
    if (isnan(x))
        printf("NAN");
    else
        printf("%.7g", x);
}

static void print_table(const work *w) {
    printf("/* Ensembles of the named sizes' heads: made by the program make_nulls, not by hand. */\n"
           "#include \"diag/nulls_cache.h\"\n\n#include <math.h>\n\n/* clang-format off */\n"
           "const nulls_entry nulls_table[] = {\n");
    for (int i = 0; i < w->count; i++) {
        nulls_moments m;
        if (!nulls_cache_find(w->cache, w->keys[i], &m)) continue;
        printf("    {\"%s\", %d,\n     {{", w->keys[i], DRAWS);
        for (int k = 0; k < 2 * NULLS_STATISTIC_COUNT; k++) {
            bool sd = k >= NULLS_STATISTIC_COUNT;
            if (k == NULLS_STATISTIC_COUNT) printf("}, {");
            if (k % NULLS_STATISTIC_COUNT) printf(", ");
            print_number(sd ? m.sd[k - NULLS_STATISTIC_COUNT] : m.mean[k]);
        }
        printf("}}},\n");
    }
    printf("};\n/* clang-format on */\nconst int nulls_table_count = sizeof(nulls_table) / sizeof(nulls_table[0]);\n");
}

int main(int argc, char **argv) {
    static const char *const all[] = {"tiny", "60m", "130m", "350m", "1b"};
    char note[512];
    work w = {.keys = calloc(MOST_ENTRIES, sizeof(*w.keys))};
    status s = w.keys ? nulls_cache_open(&w.cache, ".", note, sizeof(note)) : STATUS_INTERNAL;
    for (int blocks = 0; blocks < 2; blocks++)
        for (int i = 0; s == STATUS_OK && i < (argc > 1 ? argc - 1 : 5); i++)
            s = add_size(&w, argc > 1 ? argv[i + 1] : all[i], blocks);
    if (s == STATUS_OK)
        print_table(&w);
    else
        fprintf(stderr, "make_nulls: %s\n", status_message());
    nulls_cache_close(w.cache);
    free(w.keys);
    return s;
}
