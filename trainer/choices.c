#include "trainer/choices.h"

#include "core/file.h"

#include <ctype.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ENDINGS = 64 };
static const size_t LIMIT_BYTES = (size_t)1 << 30;

typedef struct question {
    int label, endings;
    double nats[MOST_ENDINGS];
    double bytes[MOST_ENDINGS];
} question;

typedef struct reading {
    const char *path;
    int64_t line;
    scorer *scorer;
    const tokenizer *tokenizer;
    int32_t start;
    question **question; /* [count], each where it was: the scorer adds to it later */
    int64_t count, room;
} reading;

#define BAD(r, format, ...) status_fail(STATUS_DATA, "%s:%" PRId64 ": " format, (r)->path, (r)->line, ##__VA_ARGS__)

/* ---- one ending ---- */

static status encode(const reading *r, const char *text, tokenizer_ids *out) {
    tokenizer_text t = {text, strlen(text)};
    return tokenizer_encode(r->tokenizer, &t, 1, 1, out);
}

static bool is_space_at(const char *text, size_t at) {
    return isspace((unsigned char)text[at]) != 0;
}

/* "context ending", malloc'ed. */
static char *join(const char *context, const char *ending) {
    size_t length = strlen(context);
    bool joined = length == 0 || is_space_at(context, length - 1) || is_space_at(ending, 0);
    char *text = malloc(length + strlen(ending) + 2);
    if (text) {
        memcpy(text, context, length);
        if (!joined) text[length++] = ' ';
        strcpy(text + length, ending);
    }
    return text;
}

/* ids [count] with the document's start in front, of which those behind the first `known` are the ending's. */
static status add_tokens(reading *r, const tokenizer_ids *all, int64_t known, double *nats) {
    int64_t context = r->scorer->model->context, fresh = all->count - known;
    if (fresh < 1) return BAD(r, "an ending adds no token to its context");
    if (fresh > context)
        return BAD(r, "an ending has %" PRId64 " tokens, more than the model's context, %" PRId64, fresh, context);
    int64_t n = all->count < context ? all->count : context; /* positions: each token is predicted */
    int32_t *ids = malloc((size_t)(n + 1) * sizeof *ids);
    if (!ids) return status_fail(STATUS_INTERNAL, "out of memory for a text");
    ids[0] = n < all->count ? all->ids[all->count - n - 1] : r->start;
    memcpy(ids + 1, all->ids + (all->count - n), (size_t)n * sizeof *ids);
    status s = scorer_add(r->scorer, ids, n, n - fresh, nats);
    free(ids);
    return s;
}

static status add_ending(reading *r, const char *context, const tokenizer_ids *context_ids, const char *ending,
                         double *nats) {
    tokenizer_ids all = {0};
    int64_t known = 0;
    char *text = join(context, ending);
    if (!text) return status_fail(STATUS_INTERNAL, "out of memory for a text");
    status s = encode(r, text, &all);
    free(text);
    while (known < all.count && known < context_ids->count && all.ids[known] == context_ids->ids[known]) known++;
    if (s == STATUS_OK) s = add_tokens(r, &all, known, nats);
    free(all.ids);
    return s;
}

/* ---- one question ---- */

static status add_endings(reading *r, const char *context, const json_t *endings, question *q) {
    tokenizer_ids ids = {0};
    status s = encode(r, context, &ids);
    for (int i = 0; i < q->endings && s == STATUS_OK; i++) {
        const char *ending = json_string_value(json_array_get(endings, (size_t)i));
        if (!ending || !ending[0]) {
            s = BAD(r, "ending %d is no text", i);
            break;
        }
        q->bytes[i] = (double)strlen(ending);
        s = add_ending(r, context, &ids, ending, &q->nats[i]);
    }
    free(ids.ids);
    return s;
}

static status add_question(reading *r, const json_t *line) {
    const char *context = json_string_value(json_object_get(line, "context"));
    const json_t *endings = json_object_get(line, "endings"), *label = json_object_get(line, "label");
    size_t count = json_array_size(endings);
    if (!context || count < 2 || count > MOST_ENDINGS)
        return BAD(r, "no question: it wants a \"context\" and 2 to %d \"endings\"", MOST_ENDINGS);
    if (!json_is_integer(label) || json_integer_value(label) < 0 || json_integer_value(label) >= (json_int_t)count)
        return BAD(r, "\"label\" is no whole number from 0 to %zu", count - 1);
    if (r->count == r->room) {
        int64_t room = r->room ? 2 * r->room : 64;
        question **more = realloc(r->question, (size_t)room * sizeof *more);
        if (!more) return status_fail(STATUS_INTERNAL, "out of memory for the questions");
        r->question = more;
        r->room = room;
    }
    question *q = calloc(1, sizeof *q);
    if (!q) return status_fail(STATUS_INTERNAL, "out of memory for the questions");
    r->question[r->count++] = q;
    q->label = (int)json_integer_value(label);
    q->endings = (int)count;
    return add_endings(r, context, endings, q);
}

static status add_line(reading *r, const char *text, size_t length) {
    json_error_t error;
    r->line++;
    if (strspn(text, " \t\r") >= length) return STATUS_OK;
    json_t *line = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!line) return BAD(r, "no JSON: %s", error.text);
    status s = add_question(r, line);
    json_decref(line);
    return s;
}

/* ---- all of them ---- */

choices_result choices_interval(int64_t right, int64_t count) {
    const double z = 1.959963984540054, n = (double)count, p = (double)right / n;
    double centre = (p + z * z / (2 * n)) / (1 + z * z / n);
    double half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n));
    return (choices_result){.right = right, .share = p, .low = fmax(0, centre - half), .high = fmin(1, centre + half)};
}

/* The likeliest ending is the labelled one; of equals the first is taken. */
static bool is_right(const question *q, bool per_byte) {
    int best = 0;
    double least = INFINITY;
    for (int i = 0; i < q->endings; i++) {
        double nats = q->nats[i] / (per_byte ? q->bytes[i] : 1);
        if (nats < least) {
            least = nats;
            best = i;
        }
    }
    return best == q->label;
}

static choices_result count_right(const reading *r, bool per_byte) {
    int64_t right = 0;
    for (int64_t i = 0; i < r->count; i++) right += is_right(r->question[i], per_byte);
    return choices_interval(right, r->count);
}

static status add_lines(reading *r, const char *text, size_t length) {
    for (const char *at = text, *end = text + length; at < end;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        if (!stop) stop = end;
        TRY(add_line(r, at, (size_t)(stop - at)));
        at = stop + 1;
    }
    if (r->count == 0) return status_fail(STATUS_DATA, "%s holds no question", r->path);
    return scorer_flush(r->scorer);
}

status choices_run(choices_report *out, scorer *s, const tokenizer *t, int32_t start, const char *path) {
    reading r = {.path = path, .scorer = s, .tokenizer = t, .start = start};
    char *text;
    size_t length;
    TRY(file_read_all(&text, &length, path, LIMIT_BYTES));
    status result = add_lines(&r, text, length);
    if (result == STATUS_OK)
        *out = (choices_report){.questions = r.count, .sum = count_right(&r, false), .per_byte = count_right(&r, true)};
    for (int64_t i = 0; i < r.count; i++) free(r.question[i]);
    free(r.question);
    free(text);
    return result;
}
