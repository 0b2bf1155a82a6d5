#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/splitter.h"

#include "data/reader.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

/* ---- patterns ---- */

static status refuse(const char *pattern, const char *why) {
    return status_fail(STATUS_DATA, "the pattern \"%s\" is not taken: %s", pattern, why);
}

/* Why the escape at `at` (a backslash) is not taken; NULL: it is. */
static const char *bad_escape(const char *at) {
    if (at[1] == 0) return "it ends with a backslash";
    if (at[1] == 'p' || at[1] == 'P') {
        const char *end = strchr(at, '}');
        bool category = at[2] == '{' && end && end - at - 3 >= 1 && end - at - 3 <= 2;
        return category ? NULL : "of properties only general categories (\\p{L}, \\p{Lu}) are known";
    }
    return strchr("sSdDrnt", at[1]) || strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ", at[1])
               ? NULL
               : "an escape that may mean another thing in another library";
}

/* What may follow "(?". */
static bool good_group(const char *at) {
    static const char *const known[] = {":", "=", "!", "i:", "<=", "<!", ">"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(at, known[i], strlen(known[i])) == 0) return true;
    return false;
}

/* Why the character at `at`, outside of escapes, is not taken; NULL: it is. */
static const char *bad_character(const char *at, bool in_set) {
    if (in_set && *at == '[') return "sets within sets are not known";
    if (in_set && strncmp(at, "&&", 2) == 0) return "intersections of sets are not known";
    if (in_set) return NULL;
    if (strncmp(at, "[]", 2) == 0 || strncmp(at, "[^]", 3) == 0) return "a set that begins with ] is not known";
    if (*at == '^' || *at == '$') return "anchors are not known";
    if (strncmp(at, "}+", 2) == 0) return "a + behind a repetition may mean another thing in another library";
    if (strncmp(at, "(?", 2) == 0 && !good_group(at + 2)) return "a kind of group that is not known";
    return NULL;
}

/* The same for PCRE2, whose \s also has U+180E; malloc'ed. */
static status translate(const char *pattern, char **out) {
    enum { LONGEST = 16 }; /* of what stands for two characters */
    char *to = *out = malloc(strlen(pattern) * LONGEST + 1);
    bool in_set = false;
    if (!to) return status_fail(STATUS_INTERNAL, "out of memory");
    for (const char *at = pattern; *at; at++) {
        const char *why = *at == '\\' ? bad_escape(at) : bad_character(at, in_set);
        if (why) return refuse(pattern, why);
        if (*at == '\\' && (at[1] == 's' || at[1] == 'S')) {
            to = stpcpy(to, at[1] == 's' ? "\\p{White_Space}" : "\\P{White_Space}");
            at++;
            continue;
        }
        if (*at == '[') {
            in_set = true;
            *to++ = *at;
            if (at[1] == '^') *to++ = *++at;
            continue;
        }
        in_set = in_set && *at != ']';
        *to++ = *at;
        if (*at == '\\') {
            *to++ = *++at;
            if (*at == 'p' || *at == 'P')
                while (*at != '}') *to++ = *++at;
        }
    }
    *to = 0;
    return STATUS_OK;
}

static status compile(const char *pattern, const char *shown, bool literal, pcre2_code **out) {
    int error;
    size_t where;
    uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP, empty = 1;
    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &error, &where, NULL);
    if (!*out) {
        char why[256] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        return refuse(shown, why);
    }
    pcre2_pattern_info(*out, PCRE2_INFO_MATCHEMPTY, &empty);
    if (!empty && pattern[0]) {
        pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); /* where there is no such compiler, it is slower */
        return STATUS_OK;
    }
    pcre2_code_free(*out);
    return refuse(shown, "it matches where there is nothing");
}

status splitter_add(splitter *s, const char *pattern, bool literal, splitter_behavior behavior) {
    char *translated = NULL;
    pcre2_code *code = NULL;
    if (s->count == SPLITTER_STEPS) return refuse(pattern, "there are too many steps");
    status result = literal ? STATUS_OK : translate(pattern, &translated);
    if (result == STATUS_OK) result = compile(literal ? pattern : translated, pattern, literal, &code);
    free(translated);
    if (result == STATUS_OK) s->steps[s->count++] = (struct splitter_step){code, behavior};
    return result;
}

void splitter_free(splitter *s) {
    for (int i = 0; i < s->count; i++) pcre2_code_free(s->steps[i].code);
    s->count = 0;
}

splitter_scratch *splitter_scratch_make(void) {
    return pcre2_match_data_create(1, NULL);
}

void splitter_scratch_free(splitter_scratch *m) {
    pcre2_match_data_free(m);
}

/* ---- pieces ---- */

typedef struct splitting {
    const splitter *splitter;
    splitter_scratch *match;
    splitter_take take;
    void *user;
} splitting;

/* Text between two ends goes on to the steps from `step` on. */
static status split(const splitting *p, int step, const char *text, size_t length);

/* The next match from `from` on; *start = length where there is none. */
static status find(const splitting *p, int step, const char *text, size_t length, size_t from, size_t *start,
                   size_t *end) {
    int found =
        pcre2_match(p->splitter->steps[step].code, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK, p->match, NULL);
    *start = *end = length;
    if (found == PCRE2_ERROR_NOMATCH) return STATUS_OK;
    if (found < 0) {
        char why[256] = "";
        pcre2_get_error_message(found, (PCRE2_UCHAR *)why, sizeof why);
        return status_fail(STATUS_DATA, "the tokenizer's pattern cannot be applied to the text: %s", why);
    }
    const size_t *ends = pcre2_get_ovector_pointer(p->match);
    *start = ends[0];
    *end = ends[1];
    return STATUS_OK;
}

static status split(const splitting *p, int step, const char *text, size_t length) {
    if (length == 0) return STATUS_OK;
    if (step == p->splitter->count) return p->take(p->user, text, length);
    splitter_behavior behavior = p->splitter->steps[step].behavior;
    size_t done = 0, from = 0, start, end;
    while (from < length) {
        TRY(find(p, step, text, length, from, &start, &end));
        if (start == length) break;
        if (behavior != SPLIT_WITH_PREVIOUS) {
            TRY(split(p, step + 1, text + done, start - done));
            done = start;
        }
        if (behavior != SPLIT_WITH_NEXT) {
            TRY(split(p, step + 1, text + done, end - done));
            done = end;
        }
        from = end;
    }
    return split(p, step + 1, text + done, length - done);
}

status splitter_run(const splitter *s, splitter_scratch *m, const char *text, size_t length, splitter_take take,
                    void *user) {
    const splitting p = {s, m, take, user};
    while (length > 0) {
        size_t valid = reader_valid_utf8(text, length);
        TRY(split(&p, 0, text, valid));
        if (valid < length) TRY(take(user, text + valid++, 1));
        text += valid;
        length -= valid;
    }
    return STATUS_OK;
}
