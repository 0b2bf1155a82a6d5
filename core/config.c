/* Reads, resolves and checks a configuration. The work goes in three passes over one table of keys (made from
 * config_keys.h): values from defaults, file and settings; what the size and the variant imply; the rules between keys.
 */
#include "core/config.h"

#include "core/file.h"
#include "core/nearest.h"

#include <ctype.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

/* ---- the table of keys ---- */

typedef const char *const names[]; /* a choice's words in the order of its enum, NULL at the end */

static names size_names = {"custom", "tiny", "60m", "130m", "350m", "1b", NULL};
static names variant_names = {"mha", "mla-prerope", "mla-decoupled", NULL};
static names source_names = {"key", "hidden", NULL};
static names device_names = {"auto", "cpu", "cuda", NULL};
static names token_names = {"leads", "ends", NULL};
static names decay_names = {"matrices", "all", NULL};
static names precision_names = {"auto", "fp32", "bf16", NULL};
static names recompute_names = {"none", "attention", "full", NULL};
static names halves_names = {"auto", "on", "off", NULL};
static names on_nan_names = {"stop", "skip", NULL};
static names sigma2_names = {"trace", "median", "fit", NULL};
static names behind_names = {"drop", "wait", NULL};

#define NAMES_                 NULL
#define NAMES_config_size      size_names
#define NAMES_config_variant   variant_names
#define NAMES_config_source    source_names
#define NAMES_config_device    device_names
#define NAMES_config_token     token_names
#define NAMES_config_decay     decay_names
#define NAMES_config_precision precision_names
#define NAMES_config_recompute recompute_names
#define NAMES_config_halves    halves_names
#define NAMES_config_on_nan    on_nan_names
#define NAMES_config_sigma2    sigma2_names
#define NAMES_config_behind    behind_names

typedef enum kind { KIND_S, KIND_I, KIND_F, KIND_B, KIND_L, KIND_E } kind;

typedef struct key {
    const char *section, *name;
    kind kind;
    size_t offset; /* of the value in a config */
    const char *const *words;
    const char *value; /* the default as text */
    double least, most;
    const char *help;
} key;

#define ROW(section, name, type, extra, value, least, most, help)                                                      \
    {#section, #name, KIND_##type, offsetof(config, section.name), NAMES_##extra, value, least, most, help},
#define ROW_RUN(...)         ROW(run, __VA_ARGS__)
#define ROW_MODEL(...)       ROW(model, __VA_ARGS__)
#define ROW_ATTENTION(...)   ROW(attention, __VA_ARGS__)
#define ROW_DATA(...)        ROW(data, __VA_ARGS__)
#define ROW_TRAIN(...)       ROW(train, __VA_ARGS__)
#define ROW_PARALLEL(...)    ROW(parallel, __VA_ARGS__)
#define ROW_DIAGNOSTICS(...) ROW(diagnostics, __VA_ARGS__)
#define ROW_CHECKPOINT(...)  ROW(checkpoint, __VA_ARGS__)

/* clang-format off */
static const key keys[] = {
    CONFIG_RUN(ROW_RUN) CONFIG_MODEL(ROW_MODEL) CONFIG_ATTENTION(ROW_ATTENTION) CONFIG_DATA(ROW_DATA)
    CONFIG_TRAIN(ROW_TRAIN) CONFIG_PARALLEL(ROW_PARALLEL) CONFIG_DIAGNOSTICS(ROW_DIAGNOSTICS)
    CONFIG_CHECKPOINT(ROW_CHECKPOINT)
};
/* clang-format on */

enum { KEY_COUNT = sizeof keys / sizeof keys[0], TEXT_MAX = 512, FILE_MAX_BYTES = 1 << 20 };

_Static_assert(sizeof(config_size) == sizeof(unsigned), "choices are stored as unsigned");

static void *field(const config *c, const key *k) {
    return (char *)c + k->offset;
}

/* ---- where a value came from, for messages ---- */

typedef struct origin {
    const char *setting; /* NULL: the file */
    int line;            /* 0: a default */
} origin;

typedef struct loader {
    config *config;
    const char *path; /* NULL: no file */
    origin here;      /* what is being read */
    origin origins[KEY_COUNT];
} loader;

/* One message "PLACE: what". */
__attribute__((format(printf, 3, 4))) static status fail_at(const loader *l, origin where, const char *format, ...) {
    char text[1200], place[TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (where.setting)
        snprintf(place, sizeof place, "--set %s: ", where.setting);
    else if (where.line)
        snprintf(place, sizeof place, "%s:%d: ", l->path, where.line);
    else
        snprintf(place, sizeof place, "%s%s", l->path ? l->path : "", l->path ? ": " : "");
    return status_fail(STATUS_CONFIG, "%s%s", place, text);
}

/* ---- the nearest valid name ---- */

/* The key with the nearest name, one in the named section before one elsewhere. */
static const key *nearest_key(const char *section, const char *name) {
    const key *best = &keys[0];
    int least = INT_MAX;
    for (const key *k = keys; k < keys + KEY_COUNT; k++) {
        int distance = nearest_distance(name, k->name), elsewhere = nearest_distance(section, k->section);
        if (distance == INT_MAX || elsewhere == INT_MAX) continue;
        int total = 2 * distance + (elsewhere > 3 ? 3 : elsewhere);
        if (total < least) least = total, best = k;
    }
    return best;
}

static const char *nearest_section(const char *section) {
    const char *best = keys[0].section;
    int least = INT_MAX;
    for (const key *k = keys; k < keys + KEY_COUNT; k++) {
        int distance = nearest_distance(section, k->section);
        if (distance < least) least = distance, best = k->section;
    }
    return best;
}

static status find_key(const loader *l, const char *section, const char *name, const key **found) {
    for (const key *k = keys; k < keys + KEY_COUNT; k++)
        if (strcmp(k->section, section) == 0 && strcmp(k->name, name) == 0) {
            *found = k;
            return STATUS_OK;
        }
    const key *near = nearest_key(section, name);
    return fail_at(l, l->here, "there is no key %.60s.%.60s; the nearest is %s.%s (%s)", section, name, near->section,
                   near->name, near->help);
}

/* ---- one value from its text ---- */

static status fail_value(const loader *l, const key *k, const char *text, const char *want) {
    return fail_at(l, l->here, "%s.%s: \"%.80s\" is not %s (%s)", k->section, k->name, text, want, k->help);
}

/* A decimal number without its underscores, or false: [sign] digits [. digits] [e [sign] digits]; underscores stand
 * between digits only. plain holds at least strlen(text) + 1. */
static bool decimal(const char *text, char *plain) {
    const char *p = text;
    int digits = 0;
    if (*p == '+' || *p == '-') *plain++ = *p++;
    for (int part = 0; part < 2; part++) { /* before the point, behind it */
        for (; isdigit((unsigned char)*p) || *p == '_'; p++) {
            if (*p != '_')
                *plain++ = *p, digits++;
            else if (p == text || !isdigit((unsigned char)p[-1]) || !isdigit((unsigned char)p[1]))
                return false;
        }
        if (part == 0 && *p == '.')
            *plain++ = *p++;
        else
            break;
    }
    if (digits == 0) return false;
    if (*p == 'e' || *p == 'E') {
        *plain++ = *p++;
        if (*p == '+' || *p == '-') *plain++ = *p++;
        if (!isdigit((unsigned char)*p)) return false;
        while (isdigit((unsigned char)*p)) *plain++ = *p++;
    }
    *plain = '\0';
    return *p == '\0';
}

static status parse_real(const loader *l, const key *k, const char *text, double *out) {
    char plain[TEXT_MAX];
    if (strlen(text) >= sizeof plain || !decimal(text, plain)) return fail_value(l, k, text, "a number");
    double value = strtod(plain, NULL);
    bool vanished = value == 0 && strcspn(plain, "123456789") < strcspn(plain, "eE");
    if (!isfinite(value) || vanished) return fail_value(l, k, text, "a number that a double can hold");
    if (value < k->least || value > k->most)
        return fail_at(l, l->here, "%s.%s: %.80s is outside %g to %g (%s)", k->section, k->name, text, k->least,
                       k->most, k->help);
    *out = value;
    return STATUS_OK;
}

/* Exact: the digits are never rounded through a double, so 9007199254740993 and 20.00000000000000000001 are what they
 * are. */
static status parse_whole(const loader *l, const key *k, const char *text, int64_t *out) {
    char plain[TEXT_MAX];
    if (strlen(text) >= sizeof plain || !decimal(text, plain)) return fail_value(l, k, text, "a whole number");
    char *exponent_text = strpbrk(plain, "eE");
    long exponent = exponent_text ? strtol(exponent_text + 1, NULL, 10) : 0;
    if (exponent_text) *exponent_text = '\0';
    bool negative = plain[0] == '-', large = false;
    char digits[TEXT_MAX];
    int count = 0;
    const char *point = strchr(plain, '.');
    if (exponent > 10000) exponent = 10000;
    if (exponent < -10000) exponent = -10000;
    if (point) exponent -= (long)strlen(point + 1);
    for (const char *p = plain; *p; p++)
        if (isdigit((unsigned char)*p)) digits[count++] = *p;
    while (count > 0 && digits[count - 1] == '0') count--, exponent++;
    if (count > 0 && exponent < 0) return fail_value(l, k, text, "a whole number");
    int64_t value = 0;
    for (long i = 0; count > 0 && i < count + exponent && !large; i++) {
        int digit = i < count ? digits[i] - '0' : 0;
        large = __builtin_mul_overflow(value, (int64_t)10, &value) || __builtin_add_overflow(value, digit, &value);
    }
    if (negative) value = -value;
    if (large || (double)value < k->least || (double)value > k->most || value > (int64_t)k->most)
        return fail_at(l, l->here, "%s.%s: %.80s is outside %.0f to %.0f (%s)", k->section, k->name, text, k->least,
                       k->most, k->help);
    *out = value;
    return STATUS_OK;
}

static status parse_flag(const loader *l, const key *k, const char *text, bool *out) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on"};
    for (int i = 0; i < 6; i++)
        if (strcasecmp(text, words[i]) == 0) {
            *out = i % 2;
            return STATUS_OK;
        }
    return fail_value(l, k, text, "true or false");
}

static status parse_choice(const loader *l, const key *k, const char *text, unsigned *out) {
    for (unsigned i = 0; k->words[i]; i++)
        if (strcmp(text, k->words[i]) == 0) {
            *out = i;
            return STATUS_OK;
        }
    return fail_at(l, l->here, "%s.%s: there is no \"%.80s\"; the nearest is %s (%s)", k->section, k->name, text,
                   nearest_word(k->words, text), k->help);
}

static void list_free(config_list *list) {
    for (int i = 0; i < list->count; i++) free(list->items[i]);
    free(list->items);
    *list = (config_list){0};
}

static status list_add(config_list *list, const char *text, size_t length) {
    char **larger = realloc(list->items, (size_t)(list->count + 1) * sizeof *larger);
    if (larger) list->items = larger;
    char *copy = larger ? strndup(text, length) : NULL;
    if (!copy) return status_fail(STATUS_INTERNAL, "out of memory");
    list->items[list->count++] = copy;
    return STATUS_OK;
}

static bool is_space(char c) {
    return c == ' ' || c == '\t';
}

/* [*from, *to) without spaces around it and, when both ends have the same one, without its quotes. */
static bool trim(const char **from, const char **to) {
    while (*from < *to && is_space(**from)) ++*from;
    while (*to > *from && is_space((*to)[-1])) --*to;
    if (*to - *from < 2 || (**from != '"' && **from != '\'') || (*to)[-1] != **from) return false;
    ++*from, --*to;
    return true;
}

/* Appends the items of "a, b" to the list; quotes keep a comma inside an item. "" is the empty list. */
static status split_list(const loader *l, const key *k, const char *text, const char *end, config_list *list) {
    if (text == end) return STATUS_OK;
    for (const char *p = text;; p++) {
        const char *from = p, *to;
        char quote = '\0';
        for (; p < end && (quote || *p != ','); p++) {
            if (quote)
                quote = *p == quote ? '\0' : quote;
            else if (*p == '"' || *p == '\'')
                quote = *p;
        }
        to = p;
        bool quoted = trim(&from, &to);
        if (from == to && !quoted)
            return fail_at(l, l->here, "%s.%s: an item of the list is empty", k->section, k->name);
        TRY(list_add(list, from, (size_t)(to - from)));
        if (p == end) return STATUS_OK;
    }
}

/* Sets a key from the text of a scalar. A former value is replaced. */
static status set_scalar(loader *l, const key *k, const char *text) {
    void *at = field(l->config, k);
    switch (k->kind) {
    case KIND_I:
        return parse_whole(l, k, text, at);
    case KIND_F:
        return parse_real(l, k, text, at);
    case KIND_B:
        return parse_flag(l, k, text, at);
    case KIND_E:
        return parse_choice(l, k, text, at);
    case KIND_L:
        list_free(at);
        return split_list(l, k, text, text + strlen(text), at);
    case KIND_S: {
        char *copy = strdup(text);
        if (!copy) return status_fail(STATUS_INTERNAL, "out of memory");
        free(*(char **)at);
        *(char **)at = copy;
        return STATUS_OK;
    }
    }
    return STATUS_OK;
}

static status set_defaults(config *c) {
    loader l = {.config = c};
    for (const key *k = keys; k < keys + KEY_COUNT; k++) {
        bool derived = k->value[0] == '\0' && k->kind != KIND_S; /* 0, or the empty list */
        if (!derived) TRY(set_scalar(&l, k, k->value));
    }
    return STATUS_OK;
}

/* Notes where the key's value comes from; the same key twice in one place is a mistake. */
static status claim(loader *l, const key *k) {
    origin *before = &l->origins[k - keys];
    bool again = l->here.setting ? before->setting != NULL : before->line != 0;
    if (again && before->setting)
        return fail_at(l, l->here, "%s.%s is set twice (before by %s)", k->section, k->name, before->setting);
    if (again) return fail_at(l, l->here, "%s.%s is there twice (first in line %d)", k->section, k->name, before->line);
    *before = l->here;
    return STATUS_OK;
}

static bool is_null(const char *text) {
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    for (int i = 0; i < 5; i++)
        if (strcmp(text, words[i]) == 0) return true;
    return false;
}

static status fail_null(const loader *l, const char *name) {
    return fail_at(l, l->here, "%s has no value; give it one or remove it", name);
}

/* ---- YAML ---- */

typedef struct reader {
    loader *loader;
    yaml_parser_t parser;
    yaml_event_t event; /* the current one */
    const char *text;
    int section_lines[KEY_COUNT]; /* by the section's first key: where it was seen */
} reader;

static int line_of(const char *text, size_t offset) {
    int line = 1;
    for (size_t i = 0; i < offset && text[i]; i++) line += text[i] == '\n';
    return line;
}

static status next_event(reader *r) {
    yaml_event_delete(&r->event);
    memset(&r->event, 0, sizeof r->event);
    if (yaml_parser_parse(&r->parser, &r->event)) {
        r->loader->here.line = (int)r->event.start_mark.line + 1;
        return STATUS_OK;
    }
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR) return status_fail(STATUS_INTERNAL, "out of memory");
    r->loader->here.line =
        p->error == YAML_READER_ERROR ? line_of(r->text, p->problem_offset) : (int)p->problem_mark.line + 1;
    return fail_at(r->loader, r->loader->here, "this is no YAML: %s (indent with spaces, write \"key: value\")",
                   p->problem ? p->problem : "it cannot be read");
}

/* The current event is a plain, untagged scalar or one in quotes; name says whose value it is. */
static status want_scalar(const reader *r, const char *name) {
    const loader *l = r->loader;
    const yaml_event_t *e = &r->event;
    if (e->type == YAML_ALIAS_EVENT)
        return fail_at(l, l->here, "%s: aliases are not supported (quote a value that begins with *)", name);
    if (e->type != YAML_SCALAR_EVENT) return fail_at(l, l->here, "%s wants one value here", name);
    if (e->data.scalar.tag || e->data.scalar.anchor)
        return fail_at(l, l->here, "%s: tags and anchors are not supported (quote a value that begins with ! or &)",
                       name);
    const char *text = (const char *)e->data.scalar.value;
    if (strlen(text) != e->data.scalar.length) return fail_at(l, l->here, "%s: a value holds a NUL", name);
    if (e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && is_null(text)) return fail_null(l, name);
    return STATUS_OK;
}

static status read_list(reader *r, const key *k, const char *name) {
    config_list *list = field(r->loader->config, k);
    list_free(list);
    for (;;) {
        TRY(next_event(r));
        if (r->event.type == YAML_SEQUENCE_END_EVENT) return STATUS_OK;
        TRY(want_scalar(r, name));
        TRY(list_add(list, (const char *)r->event.data.scalar.value, r->event.data.scalar.length));
    }
}

static status read_key(reader *r, const char *section) {
    loader *l = r->loader;
    const key *k;
    TRY(want_scalar(r, section));
    TRY(find_key(l, section, (const char *)r->event.data.scalar.value, &k));
    TRY(claim(l, k));
    char name[64];
    snprintf(name, sizeof name, "%s.%s", k->section, k->name);
    TRY(next_event(r));
    if (r->event.type == YAML_SEQUENCE_START_EVENT && k->kind == KIND_L) return read_list(r, k, name);
    TRY(want_scalar(r, name));
    return set_scalar(l, k, (const char *)r->event.data.scalar.value);
}

static status read_section(reader *r) {
    loader *l = r->loader;
    TRY(want_scalar(r, "a section"));
    const char *text = (const char *)r->event.data.scalar.value;
    int first = 0;
    while (first < KEY_COUNT && strcmp(keys[first].section, text) != 0) first++;
    if (first == KEY_COUNT)
        return fail_at(l, l->here, "there is no section %.60s; the nearest is %s", text, nearest_section(text));
    const char *section = keys[first].section;
    if (r->section_lines[first])
        return fail_at(l, l->here, "section %s is there twice (first in line %d)", section, r->section_lines[first]);
    r->section_lines[first] = l->here.line;
    TRY(next_event(r));
    if (r->event.type == YAML_SCALAR_EVENT && is_null((const char *)r->event.data.scalar.value))
        return fail_null(l, section);
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return fail_at(l, l->here, "section %s wants its keys beneath it, indented", section);
    for (;;) {
        TRY(next_event(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) return STATUS_OK;
        TRY(read_key(r, section));
    }
}

static status read_stream(reader *r) {
    loader *l = r->loader;
    TRY(next_event(r)); /* stream start */
    TRY(next_event(r));
    if (r->event.type == YAML_STREAM_END_EVENT) return STATUS_OK; /* nothing but comments */
    TRY(next_event(r));
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return fail_at(l, l->here, "a configuration is made of sections (run:, model:, ...) with keys beneath them");
    for (;;) {
        TRY(next_event(r));
        if (r->event.type == YAML_MAPPING_END_EVENT) break;
        TRY(read_section(r));
    }
    TRY(next_event(r)); /* document end */
    TRY(next_event(r));
    if (r->event.type != YAML_STREAM_END_EVENT) return fail_at(l, l->here, "only one YAML document is wanted");
    return STATUS_OK;
}

static status read_file(loader *l) {
    char *text = NULL;
    size_t bytes = 0;
    status result = file_read_all(&text, &bytes, l->path, FILE_MAX_BYTES);
    if (result != STATUS_OK) return result == STATUS_DATA ? STATUS_CONFIG : result;
    reader r = {.loader = l, .text = text};
    if (!yaml_parser_initialize(&r.parser)) {
        free(text);
        return status_fail(STATUS_INTERNAL, "out of memory");
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
    result = read_stream(&r);
    yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    free(text);
    return result;
}

/* ---- settings ---- */

static bool is_utf8(const char *text) {
    yaml_event_t event;
    if (!yaml_scalar_event_initialize(&event, NULL, NULL, (const yaml_char_t *)text, (int)strlen(text), 1, 1,
                                      YAML_ANY_SCALAR_STYLE))
        return false;
    yaml_event_delete(&event);
    return true;
}

static status set_value(loader *l, const key *k, const char *text) {
    const char *from = text, *to = text + strlen(text);
    char name[64];
    snprintf(name, sizeof name, "%s.%s", k->section, k->name);
    bool quoted = trim(&from, &to);
    bool bracketed = k->kind == KIND_L && to - from >= 2 && *from == '[' && to[-1] == ']' && !quoted;
    if (bracketed) {
        ++from, --to;
        while (from < to && is_space(*from)) from++;
        list_free(field(l->config, k));
        return split_list(l, k, from, to, field(l->config, k));
    }
    char *value = strndup(from, (size_t)(to - from));
    if (!value) return status_fail(STATUS_INTERNAL, "out of memory");
    status result = !quoted && is_null(value) ? fail_null(l, name) : set_scalar(l, k, value);
    free(value);
    return result;
}

/* "section.key=value" */
static status apply_setting(loader *l, const char *setting) {
    l->here = (origin){.setting = setting};
    const char *equals = strchr(setting, '='), *dot = strchr(setting, '.');
    if (!equals || !dot || dot > equals || dot == setting || dot + 1 == equals)
        return fail_at(l, l->here, "write section.key=value, as in train.lr=1e-3");
    if (!is_utf8(setting)) return fail_at(l, l->here, "this is not UTF-8");
    char section[64], name[64];
    snprintf(section, sizeof section, "%.*s", (int)(dot - setting), setting);
    snprintf(name, sizeof name, "%.*s", (int)(equals - dot - 1), dot + 1);
    const key *k;
    TRY(find_key(l, section, name, &k));
    TRY(claim(l, k));
    return set_value(l, k, equals + 1);
}

/* ---- what size and variant imply ---- */

typedef struct preset {
    int64_t layers, width, heads, ffn, vocab, context, latent_dims; /* the last: R_kv over D */
} preset;

static const preset presets[] = {
    [SIZE_CUSTOM] = {.latent_dims = 4},
    [SIZE_TINY] = {4, 256, 4, 688, 4096, 256, 2},
    [SIZE_60M] = {8, 512, 8, 1376, 32000, 1024, 4},
    [SIZE_130M] = {12, 768, 12, 2048, 32000, 1024, 4},
    [SIZE_350M] = {24, 1024, 16, 2736, 32000, 1024, 4},
    [SIZE_1B] = {24, 2048, 32, 5461, 32000, 1024, 4},
};

static void derive(int64_t *value, int64_t implied) {
    if (*value == 0) *value = implied;
}

/* PATH's file name without folder and extension. */
static status name_from_path(const char *path, char **out) {
    const char *slash = path ? strrchr(path, '/') : NULL;
    const char *base = !path ? "run" : slash ? slash + 1 : path;
    const char *dot = strrchr(base, '.');
    free(*out);
    *out = strndup(base, dot && dot != base ? (size_t)(dot - base) : strlen(base));
    return *out ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory");
}

static status resolve_names(loader *l) {
    config *c = l->config;
    if (c->run.name[0] == '\0') TRY(name_from_path(l->path, &c->run.name));
    if (c->run.dir[0] != '\0') return STATUS_OK;
    size_t room = strlen(c->run.name) + sizeof "runs/";
    char *dir = malloc(room);
    if (!dir) return status_fail(STATUS_INTERNAL, "out of memory");
    snprintf(dir, room, "runs/%s", c->run.name);
    free(c->run.dir);
    c->run.dir = dir;
    return STATUS_OK;
}

/* The place of a key that a rule is about. */
static origin origin_of(const loader *l, const void *value) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (field(l->config, &keys[i]) == value) return l->origins[i];
    return (origin){0};
}

#define RULE(broken, at, ...)                                                                                          \
    do {                                                                                                               \
        if (broken) return fail_at(l, origin_of(l, &l->config->at), #at ": " __VA_ARGS__);                             \
    } while (0)

static status resolve_model(loader *l) {
    config *c = l->config;
    const preset *p = &presets[c->model.size];
    derive(&c->model.layers, p->layers);
    derive(&c->model.width, p->width);
    derive(&c->model.heads, p->heads);
    derive(&c->model.ffn, p->ffn);
    derive(&c->model.vocab, p->vocab);
    derive(&c->model.context, p->context);
    static const char wanted[] = "is missing; give it, or a model.size (tiny, 60m, 130m, 350m or 1b)";
    RULE(c->model.layers == 0, model.layers, "%s", wanted);
    RULE(c->model.width == 0, model.width, "%s", wanted);
    RULE(c->model.heads == 0, model.heads, "%s", wanted);
    RULE(c->model.ffn == 0, model.ffn, "%s", wanted);
    RULE(c->model.context == 0, model.context, "%s", wanted);
    RULE(c->model.head_dim == 0 && c->model.width % c->model.heads != 0, model.heads,
         "%lld heads do not divide model.width %lld; change one, or give model.head_dim", (long long)c->model.heads,
         (long long)c->model.width);
    derive(&c->model.kv_heads, c->model.heads);
    derive(&c->model.head_dim, c->model.width / c->model.heads);
    int64_t dim = c->model.head_dim;
    derive(&c->attention.kv_lora_rank, p->latent_dims * dim);
    derive(&c->attention.qk_nope_head_dim, dim);
    derive(&c->attention.qk_rope_head_dim, dim / 2 > 0 ? dim / 2 : 1);
    derive(&c->attention.v_head_dim, dim);
    return STATUS_OK;
}

/* ---- rules between keys ---- */

static status check_attention(const loader *l) {
    const config *c = l->config;
    config_variant variant = c->attention.variant;
    long long heads = c->model.heads, kv_heads = c->model.kv_heads, dim = c->model.head_dim;
    const char *name = config_variant_name(variant);
    RULE(heads % kv_heads != 0, model.kv_heads, "%lld does not divide model.heads %lld", kv_heads, heads);
    RULE(variant != VARIANT_MHA && kv_heads != heads, model.kv_heads,
         "%lld, but attention.variant %s needs as many as model.heads, %lld", kv_heads, name, heads);
    RULE(variant != VARIANT_MLA_DECOUPLED && dim % 2 != 0, model.head_dim,
         "%lld is odd, but rotary turns pairs of dimensions (attention.variant %s rotates whole heads)", dim, name);
    RULE(variant == VARIANT_MLA_DECOUPLED && c->attention.qk_rope_head_dim % 2 != 0, attention.qk_rope_head_dim,
         "%lld is odd, but rotary turns pairs of dimensions (the default is half of model.head_dim %lld)",
         (long long)c->attention.qk_rope_head_dim, dim);
    RULE(variant == VARIANT_MLA_PREROPE && c->attention.v_head_dim != dim, attention.v_head_dim,
         "%lld, but attention.variant mla-prerope needs model.head_dim, %lld", (long long)c->attention.v_head_dim, dim);
    RULE(variant == VARIANT_MLA_PREROPE && c->attention.prerope_source == SOURCE_HIDDEN &&
             heads * dim != c->model.width,
         attention.prerope_source, "hidden needs model.heads x model.head_dim (%lld x %lld) to be model.width, %lld",
         heads, dim, (long long)c->model.width);
    RULE(variant != VARIANT_MLA_DECOUPLED && c->attention.q_lora_rank != 0, attention.q_lora_rank,
         "%lld, but only attention.variant mla-decoupled has a query latent", (long long)c->attention.q_lora_rank);
    return STATUS_OK;
}

static status check_training(const loader *l) {
    const config *c = l->config;
    long long global = c->train.global_batch, micro = c->train.micro_batch, tensor = c->parallel.tensor;
    long long data = c->parallel.data ? c->parallel.data : 1;
    RULE(c->train.warmup > c->train.steps, train.warmup, "%lld is more than train.steps, %lld",
         (long long)c->train.warmup, (long long)c->train.steps);
    RULE(c->model.heads % tensor != 0, parallel.tensor, "%lld ranks do not divide model.heads, %lld", tensor,
         (long long)c->model.heads);
    RULE(c->model.kv_heads % tensor != 0, parallel.tensor, "%lld ranks do not divide model.kv_heads, %lld", tensor,
         (long long)c->model.kv_heads);
    RULE(global % data != 0, train.global_batch, "%lld is not a multiple of parallel.data, %lld", global, data);
    RULE(micro != 0 && global / data % micro != 0, train.micro_batch,
         "%lld does not divide a rank's share of train.global_batch (%lld over parallel.data %lld)", micro, global,
         data);
    RULE(c->train.eval_every > 0 && c->data.validation.count == 0, train.eval_every,
         "%lld, but data.validation is empty", (long long)c->train.eval_every);
    return STATUS_OK;
}

static status check_words(const loader *l, const config_list *list, const char *name, const char *const *words) {
    for (int i = 0; i < list->count; i++) {
        const char *const *word = words;
        while (*word && strcmp(*word, list->items[i]) != 0) word++;
        if (!*word)
            return fail_at(l, origin_of(l, list), "%s: there is no \"%.80s\"; the nearest is %s", name, list->items[i],
                           nearest_word(words, list->items[i]));
        for (int j = 0; j < i; j++)
            if (strcmp(list->items[j], list->items[i]) == 0)
                return fail_at(l, origin_of(l, list), "%s: %s is there twice", name, list->items[i]);
    }
    if (list->count == 0)
        return fail_at(l, origin_of(l, list), "%s is empty; diagnostics.ranks: 0 turns spectra off", name);
    return STATUS_OK;
}

static bool contains(const config_list *list, const char *word) {
    for (int i = 0; i < list->count; i++)
        if (strcmp(list->items[i], word) == 0) return true;
    return false;
}

static status check_diagnostics(const loader *l) {
    static names scopes = {"head", "layer", NULL}, parts = {"full", "content", "rope", "ov", NULL},
                 forms = {"score", "channel", "weight", NULL};
    const config *c = l->config;
    TRY(check_words(l, &c->diagnostics.scopes, "diagnostics.scopes", scopes));
    TRY(check_words(l, &c->diagnostics.parts, "diagnostics.parts", parts));
    TRY(check_words(l, &c->diagnostics.forms, "diagnostics.forms", forms));
    RULE(c->diagnostics.ranks == 0 && c->diagnostics.alerts.count > 0, diagnostics.alerts,
         "without diagnostics ranks there are no spectra to watch");
    if (c->diagnostics.ranks == 0) return STATUS_OK;
    RULE(c->diagnostics.ranks > c->model.layers, diagnostics.ranks,
         "diagnostics ranks divide the layers, and the model has %lld", (long long)c->model.layers);
    /* A choice that leaves nothing to record would only be noticed when the run is over. */
    const config_list *forms_on = &c->diagnostics.forms, *parts_on = &c->diagnostics.parts;
    bool weights = contains(forms_on, "weight"), latent = c->attention.variant != VARIANT_MHA;
    RULE(c->attention.variant != VARIANT_MLA_DECOUPLED && !contains(parts_on, "full") && !contains(parts_on, "ov") &&
             !weights,
         diagnostics.parts, "attention.variant %s has no content and rope parts, only full and ov",
         config_variant_name(c->attention.variant));
    RULE(!contains(&c->diagnostics.scopes, "head") && !contains(forms_on, "score") && !(weights && latent),
         diagnostics.forms, "diagnostics.scopes: layer is recorded in the score form only%s",
         latent ? ", and as weights that heads share" : "");
    return STATUS_OK;
}

static status check_name(const loader *l) {
    const char *name = l->config->run.name;
    RULE(strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0, run.name,
         "\"%.80s\" cannot name a folder (use run.dir for a path)", name);
    for (const char *p = name; *p; p++)
        RULE((unsigned char)*p < ' ' || *p == 127, run.name, "it holds a control character");
    return STATUS_OK;
}

/* What a person may ask for and this version does not do yet; a line goes when its feature comes. */
static status check_supported(const loader *l) {
    const config *c = l->config;
    RULE(c->data.document_mask, data.document_mask, "this version attends across document ends (false)");
    return STATUS_OK;
}

/* ---- the door ---- */

/* Numbers are read and printed with a point whatever the person's locale says. Gives back the former locale. */
static locale_t enter_c_locale(locale_t *made) {
    *made = newlocale(LC_NUMERIC_MASK, "C", duplocale(uselocale((locale_t)0)));
    return *made ? uselocale(*made) : (locale_t)0;
}

static void leave_c_locale(locale_t made, locale_t before) {
    if (!made) return;
    uselocale(before);
    freelocale(made);
}

static status load(loader *l, const char *const *settings, int setting_count) {
    TRY(set_defaults(l->config));
    if (l->path) TRY(read_file(l));
    for (int i = 0; i < setting_count; i++) TRY(apply_setting(l, settings[i]));
    TRY(resolve_names(l));
    TRY(resolve_model(l));
    TRY(check_name(l));
    TRY(check_attention(l));
    TRY(check_training(l));
    TRY(check_diagnostics(l));
    return check_supported(l);
}

status config_load(config *out, const char *path, const char *const *settings, int setting_count) {
    *out = (config){0};
    locale_t made, before = enter_c_locale(&made);
    loader l = {.config = out, .path = path};
    status result = load(&l, settings, setting_count);
    leave_c_locale(made, before);
    if (result != STATUS_OK) config_free(out);
    return result;
}

void config_free(config *c) {
    for (const key *k = keys; k < keys + KEY_COUNT; k++) {
        if (k->kind == KIND_S) free(*(char **)field(c, k));
        if (k->kind == KIND_L) list_free(field(c, k));
    }
    *c = (config){0};
}

/* The fewest digits that read back as the same double. */
static void print_double(char *text, size_t room, double value) {
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, room, "%.*g", digits, value);
        if (strtod(text, NULL) == value) return;
    }
}

/* Text of a value that is neither string nor list; "" for one that is still to be derived. */
static void print_value(char *text, size_t room, const config *c, const key *k) {
    const void *at = field(c, k);
    text[0] = '\0';
    if (k->kind == KIND_B) snprintf(text, room, "%s", *(const bool *)at ? "true" : "false");
    if (k->kind == KIND_E) snprintf(text, room, "%s", k->words[*(const unsigned *)at]);
    if (k->kind == KIND_F) print_double(text, room, *(const double *)at);
    if (k->kind == KIND_I && (*(const int64_t *)at != 0 || k->value[0] != '\0'))
        snprintf(text, room, "%lld", (long long)*(const int64_t *)at);
}

/* The items with commas between them; malloc'ed. */
static char *join(const config_list *list) {
    size_t room = 1;
    for (int i = 0; i < list->count; i++) room += strlen(list->items[i]) + 1;
    char *text = malloc(room), *end = text;
    if (!text) return NULL;
    *end = '\0';
    for (int i = 0; i < list->count; i++) end += sprintf(end, "%s%s", i ? "," : "", list->items[i]);
    return text;
}

/* The words of a choice as an array; null for another key. */
static json_t *describe_words(const key *k) {
    json_t *words = k->words ? json_array() : json_null();
    for (int i = 0; k->words && k->words[i]; i++) json_array_append_new(words, json_string(k->words[i]));
    return words;
}

json_t *config_describe_keys(void) {
    static const char *const types[] = {[KIND_S] = "text", [KIND_I] = "whole number", [KIND_F] = "number",
                                        [KIND_B] = "flag", [KIND_L] = "list",         [KIND_E] = "choice"};
    json_t *all = json_array();
    for (const key *k = keys; all && k < keys + KEY_COUNT; k++) {
        char name[64];
        bool number = k->kind == KIND_I || k->kind == KIND_F;
        snprintf(name, sizeof name, "%s.%s", k->section, k->name);
        json_t *one =
            json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:s}", "key", name, "type", types[k->kind], "default", k->value,
                      "least", number ? json_real(k->least) : json_null(), "most",
                      number ? json_real(k->most) : json_null(), "choices", describe_words(k), "meaning", k->help);
        if (json_array_append_new(all, one) == 0) continue;
        json_decref(all);
        all = NULL;
    }
    return all;
}

void config_visit(const config *c, void (*visit)(void *user, const char *key, const char *value), void *user) {
    locale_t made, before = enter_c_locale(&made);
    for (const key *k = keys; k < keys + KEY_COUNT; k++) {
        char name[64], value[64];
        snprintf(name, sizeof name, "%s.%s", k->section, k->name);
        print_value(value, sizeof value, c, k);
        char *joined = k->kind == KIND_L ? join(field(c, k)) : NULL;
        visit(user, name, joined ? joined : k->kind == KIND_S ? *(char **)field(c, k) : value);
        free(joined);
    }
    leave_c_locale(made, before);
}

/* ---- YAML out: libyaml's emitter quotes what it must; we add quotes where a plain word would be read as null ---- */

typedef struct text_buffer {
    char *data;
    size_t length;
} text_buffer;

static int append(void *user, unsigned char *data, size_t size) {
    text_buffer *b = user;
    char *larger = realloc(b->data, b->length + size + 1);
    if (!larger) return 0;
    b->data = larger;
    memcpy(b->data + b->length, data, size);
    b->length += size;
    b->data[b->length] = '\0';
    return 1;
}

static bool emit_scalar(yaml_emitter_t *out, const char *text) {
    yaml_event_t e;
    yaml_scalar_style_t style = is_null(text) ? YAML_DOUBLE_QUOTED_SCALAR_STYLE : YAML_ANY_SCALAR_STYLE;
    return yaml_scalar_event_initialize(&e, NULL, NULL, (const yaml_char_t *)text, (int)strlen(text), 1, 1, style) &&
           yaml_emitter_emit(out, &e);
}

static bool emit_map_start(yaml_emitter_t *out) {
    yaml_event_t e;
    return yaml_mapping_start_event_initialize(&e, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE) &&
           yaml_emitter_emit(out, &e);
}

static bool emit_map_end(yaml_emitter_t *out) {
    yaml_event_t e;
    return yaml_mapping_end_event_initialize(&e) && yaml_emitter_emit(out, &e);
}

static bool emit_list(yaml_emitter_t *out, const config_list *list) {
    yaml_event_t e;
    bool ok =
        yaml_sequence_start_event_initialize(&e, NULL, NULL, 1, YAML_FLOW_SEQUENCE_STYLE) && yaml_emitter_emit(out, &e);
    for (int i = 0; ok && i < list->count; i++) ok = emit_scalar(out, list->items[i]);
    return ok && yaml_sequence_end_event_initialize(&e) && yaml_emitter_emit(out, &e);
}

static bool emit_key(yaml_emitter_t *out, const config *c, const key *k) {
    char value[64];
    print_value(value, sizeof value, c, k);
    if (k->kind == KIND_L) return emit_scalar(out, k->name) && emit_list(out, field(c, k));
    if (k->kind == KIND_S) return emit_scalar(out, k->name) && emit_scalar(out, *(char **)field(c, k));
    if (value[0] == '\0') return true; /* still to be derived */
    return emit_scalar(out, k->name) && emit_scalar(out, value);
}

static bool emit_config(yaml_emitter_t *out, const config *c) {
    yaml_event_t e;
    bool ok = yaml_stream_start_event_initialize(&e, YAML_UTF8_ENCODING) && yaml_emitter_emit(out, &e) &&
              yaml_document_start_event_initialize(&e, NULL, NULL, NULL, 1) && yaml_emitter_emit(out, &e) &&
              emit_map_start(out);
    for (const key *k = keys; ok && k < keys + KEY_COUNT; k++) {
        if (k == keys || strcmp(k->section, k[-1].section) != 0)
            ok = (k == keys || emit_map_end(out)) && emit_scalar(out, k->section) && emit_map_start(out);
        ok = ok && emit_key(out, c, k);
    }
    return ok && emit_map_end(out) && emit_map_end(out) && yaml_document_end_event_initialize(&e, 1) &&
           yaml_emitter_emit(out, &e) && yaml_stream_end_event_initialize(&e) && yaml_emitter_emit(out, &e) &&
           yaml_emitter_flush(out);
}

char *config_to_yaml(const config *c) {
    yaml_emitter_t out;
    text_buffer buffer = {0};
    if (!yaml_emitter_initialize(&out)) return NULL;
    yaml_emitter_set_output(&out, append, &buffer);
    yaml_emitter_set_unicode(&out, 1);
    yaml_emitter_set_width(&out, -1);
    locale_t made, before = enter_c_locale(&made);
    bool ok = emit_config(&out, c);
    leave_c_locale(made, before);
    yaml_emitter_delete(&out);
    if (ok) return buffer.data;
    free(buffer.data);
    return NULL;
}

const char *config_variant_name(config_variant v) {
    return variant_names[v];
}

const char *config_recompute_name(config_recompute r) {
    return recompute_names[r];
}
