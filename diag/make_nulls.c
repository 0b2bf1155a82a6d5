/* Makes diag/nulls_table.c: the ensembles of the named sizes, for weights as they are initialized and some way around,
 * and of the heads of models that many analyse. The target make_nulls builds this program; it prints the table.
 *
 *     BULKHEAD_CACHE=FOLDER make_nulls [--known] [SIZE ...] > diag/nulls_table.c
 *
 * What is already in that cache folder is taken from there, and what is made is written there: so it may be stopped
 * and started again; with --known nothing is made. The shipped table itself is not read. */
#include "diag/nulls_cache.h"
#include "diag/nulls_grid.h"
#include "diag/nulls_shape.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A draw of a layer of higher rank costs more than a table is worth: all draws together 300 s at 1024. */
enum { DRAWS = 16384, LAYER_DRAWS = DRAWS / 16, MOST_LAYER_RANK = 768, MOST_ENTRIES = 4096 };

/* How far around the initial log ratios: a score block's drift first, and its grid is one-dimensional. */
static const double SCORE_REACH = 0.1, OTHER_REACH = 0.03;

/* The table is empty here: what the program ships may be what is wrong. */
const nulls_entry nulls_table[1];
const int nulls_table_count = 0;

typedef struct work {
    nulls_cache *cache;
    nulls_entry *entries; /* [MOST_ENTRIES], in the table's order */
    int count;
    bool known; /* take what is in the cache, make nothing */
} work;

static bool listed(const work *w, const char *key) {
    for (int i = 0; i < w->count; i++)
        if (strcmp(w->entries[i].key, key) == 0) return true;
    return false;
}

static status add_node(work *w, const nulls_shape *s, int draws, const double *node) {
    nulls_entry *e = &w->entries[w->count];
    if (w->count == MOST_ENTRIES) return status_fail(STATUS_INTERNAL, "more than %d ensembles", MOST_ENTRIES);
    nulls_key(e->key, s, node, draws);
    e->draws = draws;
    if (listed(w, e->key)) return STATUS_OK;
    bool found = nulls_cache_find(w->cache, e->key, &e->moments);
    w->count += found || !w->known;
    if (found || w->known) return STATUS_OK;
    fprintf(stderr, "%s\n", e->key);
    TRY(nulls_ensemble(s, node, draws, NULLS_SEED, omp_get_max_threads(), NULL, &e->moments));
    return nulls_cache_add(w->cache, e, true);
}

static status add_point(work *w, const nulls_shape *s, int draws, const double *log_ratio) {
    double at[NULLS_MOST_RATIOS] = {log_ratio[0], log_ratio[1]}, node[NULLS_MOST_NODES][NULLS_MOST_RATIOS];
    nulls_round(s, at);
    int count = nulls_nodes(s, at, node);
    for (int i = 0; i < count; i++) TRY(add_node(w, s, draws, node[i]));
    return STATUS_OK;
}

/* All weights have the same variance at first, gains are 1; a layer's rope queries are sums over its heads. */
static void initial_ratios(const config *c, const nulls_shape *s, double *log_ratio) {
    double key = 0.5 * log((double)c->model.width / (double)c->attention.kv_lora_rank);
    log_ratio[0] = s->kind == NULLS_BLOCK && !s->channel ? key + 0.5 * log(s->copies) : 0;
    log_ratio[1] = s->kind == NULLS_BLOCK && s->channel ? key : 0;
}

static status add_shape(work *w, const config *c, const nulls_shape *s, int draws) {
    double start[NULLS_MOST_RATIOS], reach = s->kind == NULLS_BLOCK && !s->channel ? SCORE_REACH : OTHER_REACH;
    initial_ratios(c, s, start);
    for (int i = -1; i <= 1; i++)
        for (int j = -1; j <= 1; j++)
            TRY(add_point(w, s, draws, (double[]){start[0] + i * reach, start[1] + j * reach}));
    return STATUS_OK;
}

/* One variant's maps of that scope. */
static status add_maps(work *w, const config *c, int scope, bool channel_blocks) {
    bool layer = scope == MAPS_layer, parts = c->attention.variant == VARIANT_MLA_DECOUPLED;
    for (int form = MAPS_score; form <= (layer ? MAPS_score : MAPS_channel); form++)
        for (int part = MAPS_full; part <= (parts ? MAPS_rope : MAPS_full); part++) {
            nulls_shape s;
            nulls_shape_of(c, &(maps_matrix){.form = form, .part = part, .scope = scope, .tensor = ""}, &s);
            if ((s.kind == NULLS_BLOCK && s.channel) != channel_blocks || (layer && s.rank > MOST_LAYER_RANK)) continue;
            TRY(add_shape(w, c, &s, layer ? LAYER_DRAWS : DRAWS));
        }
    return STATUS_OK;
}

static status add_size(work *w, const char *size, int scope, bool channel_blocks) {
    static const char *const variants[] = {"mha", "mla-prerope", "mla-decoupled"};
    for (int v = 0; v < 3; v++) {
        char model[64], variant[64];
        config c;
        snprintf(model, sizeof(model), "model.size=%s", size);
        snprintf(variant, sizeof(variant), "attention.variant=%s", variants[v]);
        TRY(config_load(&c, NULL, (const char *const[]){model, variant}, 2));
        status result = add_maps(w, &c, scope, channel_blocks);
        config_free(&c);
        TRY(result);
    }
    return STATUS_OK;
}

/* Models that many analyse: width and head dim, and where keys pass a latent its rank; the shapes of the sizes are not
 * repeated. Their blocks of content and rope are left out: trained ones have ratios of all sorts. */
static const struct public_heads {
    int width, dim, latent;
} public_heads[] = {
    {4096, 128, 0},   /* Llama 2 7B, 3 8B; Mistral 7B; Qwen3 8B */
    {2048, 128, 0},   /* Qwen2.5 3B, Qwen3 1.7B */
    {2048, 128, 512}, /* DeepSeek-V2-Lite, content */
};

static status add_public(work *w) {
    const double none[NULLS_MOST_RATIOS] = {0};
    for (size_t i = 0; i < sizeof(public_heads) / sizeof(*public_heads); i++)
        for (int channel = 0; channel < 2; channel++) {
            const struct public_heads *h = &public_heads[i];
            nulls_shape s = {.kind = NULLS_CHAIN,
                             .dim_count = h->latent ? 4 : 3,
                             .dim = {h->width, h->dim, channel ? h->dim : h->width, h->latent}};
            nulls_shape_finish(&s);
            TRY(add_node(w, &s, DRAWS, none));
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
    printf("/* Ensembles that come with the program: made by make_nulls, not by hand. */\n"
           "#include \"diag/nulls_cache.h\"\n\n#include <math.h>\n\n/* clang-format off */\n"
           "const nulls_entry nulls_table[] = {\n");
    for (int i = 0; i < w->count; i++) {
        const nulls_moments *m = &w->entries[i].moments;
        printf("    {\"%s\", %d,\n     {{", w->entries[i].key, w->entries[i].draws);
        for (int k = 0; k < 2 * NULLS_STATISTIC_COUNT; k++) {
            bool sd = k >= NULLS_STATISTIC_COUNT;
            if (k == NULLS_STATISTIC_COUNT) printf("}, {");
            if (k % NULLS_STATISTIC_COUNT) printf(", ");
            print_number(sd ? m->sd[k - NULLS_STATISTIC_COUNT] : m->mean[k]);
        }
        printf("}}},\n");
    }
    printf("};\n/* clang-format on */\nconst int nulls_table_count = sizeof(nulls_table) / sizeof(nulls_table[0]);\n");
}

static status add_sizes(work *w, const char *const *sizes, int count, int scope, bool channel_blocks) {
    for (int i = 0; i < count; i++) TRY(add_size(w, sizes[i], scope, channel_blocks));
    return STATUS_OK;
}

/* What findings need comes first, last what are most and serve least; public: models of others too. */
static status add_all(work *w, const char *const *sizes, int count, bool public) {
    TRY(add_sizes(w, sizes, count, MAPS_head, false));
    if (public) TRY(add_public(w));
    TRY(add_sizes(w, sizes, count, MAPS_layer, false));
    return add_sizes(w, sizes, count, MAPS_head, true);
}

int main(int argc, char **argv) {
    static const char *const all[] = {"tiny", "60m", "130m", "350m", "1b"};
    char note[512];
    work w = {.entries = calloc(MOST_ENTRIES + 1, sizeof(*w.entries)),
              .known = argc > 1 && strcmp(argv[1], "--known") == 0};
    const char *const *sizes = (const char *const *)argv + 1 + w.known;
    int count = argc - 1 - w.known;
    status s = w.entries ? nulls_cache_open(&w.cache, ".", note, sizeof(note)) : STATUS_INTERNAL;
    if (s == STATUS_OK && count > 0) s = add_all(&w, sizes, count, false);
    if (s == STATUS_OK && count == 0) s = add_all(&w, all, sizeof(all) / sizeof(*all), true);
    if (s == STATUS_OK)
        print_table(&w);
    else
        fprintf(stderr, "make_nulls: %s\n", status_message());
    nulls_cache_close(w.cache);
    free(w.entries);
    return s;
}
