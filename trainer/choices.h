/* Multiple choice, as in HellaSwag: a context and several endings, of which the model's favourite is the likeliest. One
 * question a line of a JSONL file: {"context": "...", "endings": ["...", ...], "label": 0}. */
#pragma once

#include "data/tokenizer.h"
#include "trainer/scoring.h"

/* Right answers by one way of scoring, and the 95% interval of their share (Wilson 1927). */
typedef struct choices_result {
    int64_t right;
    double share, low, high;
} choices_result;

typedef struct choices_report {
    int64_t questions;
    choices_result sum;      /* by the log-probability of an ending */
    choices_result per_byte; /* by that over the ending's bytes */
} choices_report;

/* Scores the file's questions. An ending's tokens are those of the text "context ending" behind the ones that it has in
 * common with the context alone; a space stands between the two unless one of them brings white space. In front stands
 * `start`, the document's. A text longer than the model's context loses its beginning. NO_INPUT or IO as file_read_all;
 * DATA, with the line, for one that is no such question, or an ending that is longer than the context. */
status choices_run(choices_report *out, scorer *s, const tokenizer *t, int32_t start, const char *path);

/* The interval for `right` of `count`. */
choices_result choices_interval(int64_t right, int64_t count);
