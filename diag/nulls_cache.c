/* The shipped table, the shared file, and what a process has made. */
#include "diag/nulls_cache.h"

#include "core/file.h"
#include "core/rng.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char HEADER[] = "bulkhead nulls 1\n";
enum { LINE_BYTES = NULLS_KEY_BYTES + 32 + 2 * NULLS_STATISTIC_COUNT * 26, MOST_FILE_BYTES = 64 << 20 };

struct nulls_cache {
    char path[4096];
    pthread_mutex_t lock;
    int count, capacity;
    nulls_entry *entries; /* of the file and made here */
};

static int compare_dims(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

/* Chains do not know the order of their dimensions. */
void nulls_key(char key[NULLS_KEY_BYTES], const nulls_shape *s, const double *log_ratio, int draws) {
    int at = 0, size = NULLS_KEY_BYTES, dim[NULLS_MOST_DIMS];
    if (s->kind == NULLS_BLOCK) {
        at = snprintf(key, (size_t)size, "%s content %d copies %d rope %d latent %d query %d width %d",
                      s->channel ? "channel" : "score", s->content, s->copies, s->rope, s->latent, s->q_latent,
                      s->width);
    } else {
        memcpy(dim, s->dim, sizeof(dim));
        qsort(dim, (size_t)s->dim_count, sizeof(*dim), compare_dims);
        at = snprintf(key, (size_t)size, "chain");
        for (int i = 0; i < s->dim_count; i++) at += snprintf(key + at, (size_t)(size - at), " %d", dim[i]);
        if (s->kind == NULLS_MIXED) at += snprintf(key + at, (size_t)(size - at), " halves %d", s->half);
    }
    for (int i = 0; i < s->ratio_count; i++)
        at += snprintf(key + at, (size_t)(size - at), i ? ",%.6g" : " at %.6g", log_ratio[i]);
    snprintf(key + at, (size_t)(size - at), " draws %d seed %d", draws, NULLS_SEED);
}

/* ---------------------------------------------------------------- lines of the file */

static int write_line(char *to, const nulls_entry *e) {
    int at = snprintf(to, LINE_BYTES, "%s\t%d", e->key, e->draws);
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++)
        at += snprintf(to + at, (size_t)(LINE_BYTES - at), "\t%.17g\t%.17g", e->moments.mean[i], e->moments.sd[i]);
    at += snprintf(to + at, (size_t)(LINE_BYTES - at), "\n");
    return at;
}

/* What may be used: numbers where there are any, and a spread that can be divided by. */
static bool usable(const nulls_moments *m) {
    for (int i = 0; i < NULLS_alpha; i++)
        if (!isfinite(m->mean[i]) || !isfinite(m->sd[i]) || m->sd[i] < 0) return false;
    return m->sd[NULLS_ln_lambda_max] > 0;
}

static bool read_line(const char *line, nulls_entry *e) {
    const char *tab = strchr(line, '\t');
    char *end;
    if (!tab || tab == line || tab - line >= NULLS_KEY_BYTES) return false;
    memset(e, 0, sizeof(*e));
    memcpy(e->key, line, (size_t)(tab - line));
    e->draws = (int)strtol(tab + 1, &end, 10);
    if (e->draws < 2) return false;
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++)
        for (int k = 0; k < 2; k++) {
            if (*end != '\t') return false;
            const char *from = end + 1;
            *(k ? &e->moments.sd[i] : &e->moments.mean[i]) = strtod(from, &end);
            if (end == from) return false;
        }
    return *end == '\0' && usable(&e->moments);
}

static uint64_t checksum(const char *text) {
    return rng_stream(text);
}

/* ---------------------------------------------------------------- entries */

static int find(const nulls_cache *c, const char *key) {
    for (int i = 0; i < c->count; i++)
        if (strcmp(c->entries[i].key, key) == 0) return i;
    return -1;
}

static status keep(nulls_cache *c, const nulls_entry *e) {
    if (find(c, e->key) >= 0) return STATUS_OK;
    if (c->count == c->capacity) {
        int capacity = c->capacity ? 2 * c->capacity : 64;
        nulls_entry *more = realloc(c->entries, (size_t)capacity * sizeof(*more));
        if (!more) return status_fail(STATUS_INTERNAL, "out of memory for %d null ensembles", capacity);
        c->entries = more;
        c->capacity = capacity;
    }
    c->entries[c->count++] = *e;
    return STATUS_OK;
}

/* Cuts text into lines and keeps them. Why not, or NULL; then nothing is kept. */
static const char *keep_text(nulls_cache *c, char *text) {
    size_t header = strlen(HEADER);
    int before = c->count;
    char *end = strstr(text, "\nend ");
    if (strncmp(text, HEADER, header) != 0) return "it is not of this program or version";
    if (!end) return "it is cut short";
    uint64_t want = strtoull(end + 5, NULL, 16);
    end[1] = '\0';
    if (checksum(text) != want) return "its checksum is wrong";
    for (char *line = text + header; *line;) {
        char *newline = strchr(line, '\n');
        nulls_entry e;
        *newline = '\0';
        if (!read_line(line, &e)) {
            c->count = before;
            return "a line is malformed";
        }
        if (keep(c, &e) != STATUS_OK) return "there is no memory";
        line = newline + 1;
    }
    return NULL;
}

static const char *load(nulls_cache *c) {
    char *text = NULL;
    size_t bytes;
    if (!file_exists(c->path)) return NULL;
    if (file_read_all(&text, &bytes, c->path, MOST_FILE_BYTES) != STATUS_OK) {
        status_clear();
        return "it cannot be read";
    }
    const char *why = strlen(text) == bytes ? keep_text(c, text) : "it is no text";
    free(text);
    return why;
}

/* ---------------------------------------------------------------- the cache */

static void choose_path(char *to, size_t size, const char *run_dir) {
    const char *own = getenv("BULKHEAD_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (own && *own)
        snprintf(to, size, "%s/nulls.txt", own);
    else if (xdg && *xdg)
        snprintf(to, size, "%s/bulkhead/nulls.txt", xdg);
    else if (home && *home)
        snprintf(to, size, "%s/.cache/bulkhead/nulls.txt", home);
    else
        snprintf(to, size, "%s/nulls.txt", run_dir);
}

status nulls_cache_open(nulls_cache **out, const char *run_dir, char *note, size_t note_bytes) {
    nulls_cache *c = calloc(1, sizeof(*c));
    *out = c;
    note[0] = '\0';
    if (!c) return status_fail(STATUS_INTERNAL, "out of memory for the null ensembles");
    pthread_mutex_init(&c->lock, NULL);
    choose_path(c->path, sizeof(c->path), run_dir);
    const char *why = load(c);
    if (why) snprintf(note, note_bytes, "%s is ignored and will be replaced: %s", c->path, why);
    return STATUS_OK;
}

void nulls_cache_close(nulls_cache *c) {
    if (!c) return;
    pthread_mutex_destroy(&c->lock);
    free(c->entries);
    free(c);
}

const char *nulls_cache_path(const nulls_cache *c) {
    return c->path;
}

bool nulls_cache_find(nulls_cache *c, const char *key, nulls_moments *out) {
    for (int i = 0; i < nulls_table_count; i++)
        if (strcmp(nulls_table[i].key, key) == 0) {
            *out = nulls_table[i].moments;
            return true;
        }
    pthread_mutex_lock(&c->lock);
    int i = find(c, key);
    if (i >= 0) *out = c->entries[i].moments;
    pthread_mutex_unlock(&c->lock);
    return i >= 0;
}

static status write_file(nulls_cache *c) {
    char folder[4096], *text = malloc((size_t)(c->count + 2) * LINE_BYTES), *slash;
    if (!text) return status_fail(STATUS_INTERNAL, "out of memory for %d null ensembles", c->count);
    size_t at = (size_t)snprintf(text, LINE_BYTES, "%s", HEADER);
    for (int i = 0; i < c->count; i++) at += (size_t)write_line(text + at, &c->entries[i]);
    at += (size_t)snprintf(text + at, LINE_BYTES, "end %016llx\n", (unsigned long long)checksum(text));
    memcpy(folder, c->path, sizeof(folder));
    if ((slash = strrchr(folder, '/'))) *slash = '\0';
    status s = file_make_dirs(folder);
    if (s == STATUS_OK) s = file_write_atomic(c->path, text, at);
    free(text);
    return s;
}

status nulls_cache_add(nulls_cache *c, const nulls_entry *entry, bool save) {
    pthread_mutex_lock(&c->lock);
    status s = keep(c, entry);
    if (s == STATUS_OK && save) {
        load(c);
        s = write_file(c);
    }
    pthread_mutex_unlock(&c->lock);
    return s;
}
