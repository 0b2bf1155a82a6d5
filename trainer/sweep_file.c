/* From a sweep's file to its runs: YAML, the product of the axes, names. Nothing here knows what a key means. */
#include "core/file.h"
#include "core/json.h"
#include "core/nearest.h"
#include "core/rng.h"
#include "trainer/sweep.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { FILE_MAX_BYTES = 1 << 20, MOST_RUNS = 10000, NAME_VALUE_BYTES = 32 };

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the sweep");
}

typedef struct axis {
    char *key;
    char **values;
    int count;
} axis;

typedef struct block { /* the product of its axes */
    axis *axes;
    int count;
} block;

typedef struct reader {
    sweep *out;
    yaml_document_t document;
    block grid, *include, *exclude;
    int include_count, exclude_count;
} reader;

static yaml_node_t *node_at(reader *r, int index) {
    return yaml_document_get_node(&r->document, index);
}

__attribute__((format(printf, 3, 4))) static status fail_at(const reader *r, const yaml_node_t *n, const char *format,
                                                            ...) {
    char text[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return status_fail(STATUS_CONFIG, "%s:%zu: %s", r->out->path, n->start_mark.line + 1, text);
}

/* ---------------------------------------------------------------- nodes */

static bool is_null(const yaml_node_t *n) {
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && strcmp((char *)n->data.scalar.value, words[i]) == 0)
            return true;
    return false;
}

static status want_text(const reader *r, const yaml_node_t *n, const char *what, const char **text) {
    if (n->type != YAML_SCALAR_NODE || is_null(n)) return fail_at(r, n, "%.80s wants one value", what);
    *text = (const char *)n->data.scalar.value;
    if (strlen(*text) != n->data.scalar.length) return fail_at(r, n, "%.80s: a value holds a NUL", what);
    return STATUS_OK;
}

static status copy_text(const reader *r, const yaml_node_t *n, const char *what, char **to) {
    const char *text;
    TRY(want_text(r, n, what, &text));
    *to = strdup(text);
    return *to ? STATUS_OK : out_of_memory();
}

/* Room for one more behind `count` of them. */
static status grow(void *list, int count, size_t bytes) {
    void **at = list, *more = realloc(*at, (size_t)(count + 1) * bytes);
    if (!more) return out_of_memory();
    *at = more;
    memset((char *)more + (size_t)count * bytes, 0, bytes);
    return STATUS_OK;
}

/* ---------------------------------------------------------------- axes */

static axis *find_axis(const block *b, const char *key) {
    for (int i = 0; i < b->count; i++)
        if (strcmp(b->axes[i].key, key) == 0) return &b->axes[i];
    return NULL;
}

static bool has_value(const axis *a, const char *value) {
    for (int i = 0; i < a->count; i++)
        if (strcmp(a->values[i], value) == 0) return true;
    return false;
}

static status add_value(reader *r, const yaml_node_t *n, axis *a) {
    const char *text;
    if (n->type == YAML_SEQUENCE_NODE)
        return fail_at(r, n, "%.80s: write a list that is one value as text, \"a,b\"", a->key);
    TRY(want_text(r, n, a->key, &text));
    if (has_value(a, text)) return fail_at(r, n, "%.80s has the value %.80s twice", a->key, text);
    TRY(grow(&a->values, a->count, sizeof *a->values));
    a->values[a->count] = strdup(text);
    return a->values[a->count++] ? STATUS_OK : out_of_memory();
}

/* section.key: value, or a list of them. */
static status read_axis(reader *r, const yaml_node_pair_t *pair, block *b) {
    yaml_node_t *key = node_at(r, pair->key), *value = node_at(r, pair->value);
    const char *text;
    TRY(want_text(r, key, "a key that varies", &text));
    if (find_axis(b, text)) return fail_at(r, key, "%.80s is there twice", text);
    TRY(grow(&b->axes, b->count, sizeof *b->axes));
    axis *a = &b->axes[b->count++];
    a->key = strdup(text);
    if (!a->key) return out_of_memory();
    if (value->type != YAML_SEQUENCE_NODE) return add_value(r, value, a);
    for (yaml_node_item_t *i = value->data.sequence.items.start; i < value->data.sequence.items.top; i++)
        TRY(add_value(r, node_at(r, *i), a));
    return a->count > 0 ? STATUS_OK : fail_at(r, value, "%.80s has no values", text);
}

static status read_block(reader *r, const yaml_node_t *n, const char *what, block *b) {
    if (n->type != YAML_MAPPING_NODE || n->data.mapping.pairs.start == n->data.mapping.pairs.top)
        return fail_at(r, n, "%s wants keys with values, as in attention.variant: [mha, mla-decoupled]", what);
    for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) TRY(read_axis(r, p, b));
    return STATUS_OK;
}

static status read_blocks(reader *r, const yaml_node_t *n, const char *what, block **blocks, int *count) {
    if (n->type != YAML_SEQUENCE_NODE)
        return fail_at(r, n, "%s wants a list of combinations, each behind a dash", what);
    for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top; i++) {
        TRY(grow(blocks, *count, sizeof **blocks));
        TRY(read_block(r, node_at(r, *i), what, &(*blocks)[(*count)++]));
    }
    return STATUS_OK;
}

/* A combination that the grid does not have is a mistake. */
static status check_exclude(const reader *r, const yaml_node_t *n) {
    for (int i = 0; i < r->exclude_count; i++)
        for (int k = 0; k < r->exclude[i].count; k++) {
            const axis *a = &r->exclude[i].axes[k], *of = find_axis(&r->grid, a->key);
            if (!of) return fail_at(r, n, "exclude: the grid has no key %.80s", a->key);
            for (int v = 0; v < a->count; v++)
                if (!has_value(of, a->values[v]))
                    return fail_at(r, n, "exclude: %.80s has no value %.80s in the grid", a->key, a->values[v]);
        }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- the base */

/* As JSON writes it, which YAML reads back to the same text. */
static status put_scalar(FILE *out, const yaml_node_t *n) {
    if (is_null(n)) {
        fputs("~", out);
        return STATUS_OK;
    }
    json_t *j = json_text((const char *)n->data.scalar.value);
    char *text = j ? json_dumps(j, JSON_ENCODE_ANY) : NULL;
    if (text) fputs(text, out);
    json_decref(j);
    free(text);
    return text ? STATUS_OK : out_of_memory();
}

static status put_list(reader *r, FILE *out, const yaml_node_t *n) {
    fputs("[", out);
    for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top; i++) {
        const yaml_node_t *item = node_at(r, *i);
        if (item->type != YAML_SCALAR_NODE) return fail_at(r, item, "a list holds values only");
        if (i > n->data.sequence.items.start) fputs(", ", out);
        TRY(put_scalar(out, item));
    }
    fputs("]", out);
    return STATUS_OK;
}

static status put_section(reader *r, FILE *out, const yaml_node_t *n) {
    for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = node_at(r, p->key), *value = node_at(r, p->value);
        if (key->type != YAML_SCALAR_NODE || value->type == YAML_MAPPING_NODE)
            return fail_at(r, key, "config: a section holds keys with values");
        fputs("  ", out);
        TRY(put_scalar(out, key));
        fputs(": ", out);
        TRY(value->type == YAML_SCALAR_NODE ? put_scalar(out, value) : put_list(r, out, value));
        fputs("\n", out);
    }
    return STATUS_OK;
}

static status put_sections(reader *r, FILE *out, const yaml_node_t *n) {
    for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = node_at(r, p->key), *value = node_at(r, p->value);
        if (key->type != YAML_SCALAR_NODE || value->type != YAML_MAPPING_NODE)
            return fail_at(r, key, "config: sections (model:, train:, ...) are wanted, with keys beneath them");
        TRY(put_scalar(out, key));
        fputs(":\n", out);
        TRY(put_section(r, out, value));
    }
    return STATUS_OK;
}

/* A path beside the sweep's file, or the configuration itself. */
static status read_config(reader *r, const yaml_node_t *n) {
    sweep *s = r->out;
    if (n->type == YAML_MAPPING_NODE) {
        size_t bytes;
        FILE *text = open_memstream(&s->inline_config, &bytes);
        if (!text) return out_of_memory();
        status result = put_sections(r, text, n);
        fclose(text);
        return result;
    }
    const char *file;
    TRY(want_text(r, n, "config", &file));
    const char *slash = strrchr(s->path, '/');
    int folder = file[0] != '/' && slash ? (int)(slash - s->path) + 1 : 0;
    if (asprintf(&s->config, "%.*s%s", folder, s->path, file) < 0) {
        s->config = NULL;
        return out_of_memory();
    }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- the file */

static status check_name(const reader *r, const yaml_node_t *n) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    const char *name = r->out->name;
    if (name[0] && name[0] != '.' && !name[strspn(name, plain)]) return STATUS_OK;
    return fail_at(r, n, "name: \"%.80s\" cannot name a folder here; letters, digits and ._- can", name);
}

static status read_key(reader *r, const yaml_node_pair_t *pair, bool seen[]) {
    static const char *const names[] = {"name", "folder", "config", "launcher", "grid", "include", "exclude", NULL};
    yaml_node_t *key = node_at(r, pair->key), *value = node_at(r, pair->value);
    sweep *s = r->out;
    const char *name;
    int which = 0;
    TRY(want_text(r, key, "a sweep's key", &name));
    while (names[which] && strcmp(names[which], name) != 0) which++;
    if (!names[which])
        return fail_at(r, key, "a sweep has no key %.60s; the nearest is %s", name, nearest_word(names, name));
    if (seen[which]) return fail_at(r, key, "%s is there twice", name);
    seen[which] = true;
    switch (which) {
    case 0:
        TRY(copy_text(r, value, name, &s->name));
        return check_name(r, value);
    case 1:
        return copy_text(r, value, name, &s->folder);
    case 2:
        return read_config(r, value);
    case 3:
        return copy_text(r, value, name, &s->launcher);
    case 4:
        return read_block(r, value, name, &r->grid);
    case 5:
        return read_blocks(r, value, name, &r->include, &r->include_count);
    default:
        return read_blocks(r, value, name, &r->exclude, &r->exclude_count);
    }
}

/* The file's name without folder and ending; the folder sweeps/NAME. */
static status set_defaults(reader *r, const yaml_node_t *root) {
    sweep *s = r->out;
    if (!s->name) {
        const char *slash = strrchr(s->path, '/'), *base = slash ? slash + 1 : s->path, *dot = strrchr(base, '.');
        s->name = strndup(base, dot && dot != base ? (size_t)(dot - base) : strlen(base));
        if (!s->name) return out_of_memory();
        TRY(check_name(r, root));
    }
    if (!s->folder && asprintf(&s->folder, "sweeps/%s", s->name) < 0) s->folder = NULL;
    if (s->inline_config && asprintf(&s->config, "%s/config.yaml", s->folder) < 0) s->config = NULL;
    if (!s->folder || (s->inline_config && !s->config)) return out_of_memory();
    return s->config ? STATUS_OK : fail_at(r, root, "config is missing: the path of a configuration, or its sections");
}

static status read_root(reader *r) {
    yaml_node_t *root = yaml_document_get_root_node(&r->document);
    bool seen[7] = {false};
    if (!root) return status_fail(STATUS_CONFIG, "%s: there is nothing in it", r->out->path);
    if (root->type != YAML_MAPPING_NODE) return fail_at(r, root, "a sweep is made of keys: config, grid, ...");
    for (yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top; p++)
        TRY(read_key(r, p, seen));
    if (r->grid.count + r->include_count == 0) return fail_at(r, root, "nothing varies: grid is missing");
    TRY(check_exclude(r, root));
    return set_defaults(r, root);
}

/* ---------------------------------------------------------------- runs */

/* A value as part of a folder's name; what cannot stay as it is, or is long, gets a hash. */
static void put_value(FILE *out, const char *value) {
    bool plain = strlen(value) <= NAME_VALUE_BYTES;
    for (size_t i = 0; value[i] && i < NAME_VALUE_BYTES; i++) {
        bool stays = isalnum((unsigned char)value[i]) || strchr("._+-", value[i]);
        fputc(stays ? value[i] : '_', out);
        plain = plain && stays;
    }
    if (!plain) fprintf(out, "-%08x", (unsigned)rng_stream(value));
}

/* mha-lr1e-3-seed1: a variant and a size speak for themselves, others have their key's last part before them. */
static status make_name(sweep_run *run) {
    size_t bytes;
    FILE *out = open_memstream(&run->name, &bytes);
    if (!out) return out_of_memory();
    for (int i = 0; i < run->setting_count; i++) {
        const char *key = run->settings[i].key, *dot = strrchr(key, '.');
        bool bare = strcmp(key, "attention.variant") == 0 || strcmp(key, "model.size") == 0;
        if (i > 0) fputc('-', out);
        if (!bare) fputs(dot ? dot + 1 : key, out);
        put_value(out, run->settings[i].value);
    }
    return fclose(out) == 0 && run->name ? STATUS_OK : out_of_memory();
}

static bool is_excluded(const reader *r, const block *b, const int *choice) {
    for (int i = 0; i < r->exclude_count; i++) {
        const block *e = &r->exclude[i];
        int matched = 0;
        for (int k = 0; k < e->count; k++) {
            const axis *a = find_axis(b, e->axes[k].key);
            matched += has_value(&e->axes[k], a->values[choice[a - b->axes]]);
        }
        if (matched == e->count) return true;
    }
    return false;
}

static status add_key(sweep *s, const char *key) {
    for (int i = 0; i < s->key_count; i++)
        if (strcmp(s->keys[i], key) == 0) return STATUS_OK;
    TRY(grow(&s->keys, s->key_count, sizeof *s->keys));
    s->keys[s->key_count] = strdup(key);
    return s->keys[s->key_count++] ? STATUS_OK : out_of_memory();
}

static status add_run(sweep *s, const block *b, const int *choice) {
    if (s->count == MOST_RUNS) return status_fail(STATUS_CONFIG, "%s: these are more than %d runs", s->path, MOST_RUNS);
    TRY(grow(&s->runs, s->count, sizeof *s->runs));
    sweep_run *run = &s->runs[s->count++];
    run->exit_code = -1;
    for (int i = 0; i < b->count; i++) {
        TRY(grow(&run->settings, i, sizeof *run->settings));
        run->settings[i] = (sweep_setting){strdup(b->axes[i].key), strdup(b->axes[i].values[choice[i]])};
        run->setting_count++;
        if (!run->settings[i].key || !run->settings[i].value) return out_of_memory();
        TRY(add_key(s, b->axes[i].key));
    }
    TRY(make_name(run));
    for (int i = 0; i + 1 < s->count; i++)
        if (strcmp(s->runs[i].name, run->name) == 0)
            return status_fail(STATUS_CONFIG, "%s: two runs would be named %s; take one of them out", s->path,
                               run->name);
    return STATUS_OK;
}

/* The last axis turns fastest. */
static status expand(const reader *r, const block *b, bool may_exclude) {
    if (b->count == 0) return STATUS_OK;
    int *choice = calloc((size_t)b->count, sizeof *choice), turning = 0;
    status s = choice ? STATUS_OK : out_of_memory();
    while (s == STATUS_OK && turning >= 0) {
        if (!may_exclude || !is_excluded(r, b, choice)) s = add_run(r->out, b, choice);
        for (turning = b->count - 1; turning >= 0 && ++choice[turning] == b->axes[turning].count; turning--)
            choice[turning] = 0;
    }
    free(choice);
    return s;
}

static status make_runs(const reader *r) {
    TRY(expand(r, &r->grid, true));
    for (int i = 0; i < r->include_count; i++) TRY(expand(r, &r->include[i], false));
    return r->out->count > 0 ? STATUS_OK : status_fail(STATUS_CONFIG, "%s: exclude leaves no run", r->out->path);
}

/* ---------------------------------------------------------------- the door */

static void free_block(block *b) {
    for (int i = 0; i < b->count; i++) {
        for (int k = 0; k < b->axes[i].count; k++) free(b->axes[i].values[k]);
        free(b->axes[i].values);
        free(b->axes[i].key);
    }
    free(b->axes);
}

static void free_reader(reader *r) {
    free_block(&r->grid);
    for (int i = 0; i < r->include_count; i++) free_block(&r->include[i]);
    for (int i = 0; i < r->exclude_count; i++) free_block(&r->exclude[i]);
    free(r->include);
    free(r->exclude);
}

static status read_text(reader *r, const char *text, size_t bytes) {
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser)) return out_of_memory();
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    status s = STATUS_OK;
    if (yaml_parser_load(&parser, &r->document)) {
        s = read_root(r);
        yaml_document_delete(&r->document);
    } else {
        s = status_fail(STATUS_CONFIG, "%s:%zu: %s", r->out->path, parser.problem_mark.line + 1, parser.problem);
    }
    yaml_parser_delete(&parser);
    return s;
}

status sweep_read(sweep *out, const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    *out = (sweep){.path = strdup(path)};
    if (!out->path) return out_of_memory();
    status s = file_read_all(&text, &bytes, path, FILE_MAX_BYTES);
    if (s != STATUS_OK) return s == STATUS_DATA ? STATUS_CONFIG : s;
    reader r = {.out = out};
    s = read_text(&r, text, bytes);
    if (s == STATUS_OK) s = make_runs(&r);
    free_reader(&r);
    free(text);
    return s;
}

static void free_words(char **words) {
    for (char **w = words; w && *w; w++) free(*w);
    free(words);
}

void sweep_free(sweep *s) {
    for (int i = 0; i < s->count; i++) {
        sweep_run *run = &s->runs[i];
        for (int k = 0; k < run->setting_count; k++) {
            free(run->settings[k].key);
            free(run->settings[k].value);
        }
        free(run->settings);
        free_words(run->command);
        free(run->name);
        free(run->dir);
        free(run->output);
    }
    for (int i = 0; i < s->key_count; i++) free(s->keys[i]);
    free(s->runs);
    free(s->keys);
    free(s->path);
    free(s->name);
    free(s->folder);
    free(s->config);
    free(s->inline_config);
    free(s->launcher);
    *s = (sweep){0};
}
