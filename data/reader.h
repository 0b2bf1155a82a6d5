/* Documents from text: .txt (and anything that is not named otherwise) or .jsonl (.ndjson, .json: an object a line),
 * plain, .gz or .zst. A document comes in pieces of whole lines, so that a file of any size is read in bounded memory;
 * only a JSON line is held as a whole.
 *
 * Text is UTF-8. What is not is never replaced: each bad line is counted with its place, and `invalid` says what
 * happens. */
#pragma once

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum reader_format { FORMAT_BY_NAME, FORMAT_TEXT, FORMAT_JSONL } reader_format;
typedef enum reader_encoding { ENCODING_UTF8, ENCODING_LATIN1 } reader_encoding;
typedef enum reader_invalid {
    INVALID_STOP,
    INVALID_LATIN1,
    INVALID_SKIP
} reader_invalid; /* that line: as Latin-1, or not */
typedef enum reader_documents {
    DOCUMENTS_FILES,
    DOCUMENTS_BLANK_LINES,
    DOCUMENTS_LINES
} reader_documents; /* of .txt */

typedef struct reader_options {
    reader_format format;
    reader_encoding encoding;
    reader_invalid invalid;
    reader_documents documents;
    const char *field; /* of .jsonl */
} reader_options;

enum { READER_PIECE_BYTES = 1 << 20, READER_PLACES = 8 };

typedef struct reader_piece {
    const char *text; /* valid UTF-8, until the next call */
    size_t length;    /* about READER_PIECE_BYTES at most; 0 is possible at a document's end */
    bool ends_document;
} reader_piece;

typedef struct reader_counts {
    int64_t documents, bytes; /* of text, as handed out */
    int64_t lines, invalid_lines;
    struct reader_place {
        int64_t line, offset; /* from 1; of the first bad byte, from 0, in the decompressed file */
    } places[READER_PLACES];  /* of the first invalid lines */
} reader_counts;

typedef struct reader reader;

/* Reads from the open descriptor, which the reader owns from now on. name is for messages and decides the format. */
status reader_open(reader **out, int fd, const char *name, const reader_options *options);
void reader_close(reader *r);

/* The next piece, or *done. DATA, naming file and line or offset: text that is not UTF-8 (after the whole file was read
 * and counted), binary or damaged files, lines that are no JSON object with that field. */
status reader_next(reader *r, reader_piece *piece, bool *done);

const reader_counts *reader_count(const reader *r);

/* How many of the first `limit` bytes of the text make a good part: up to the last line end, else up to the last
 * character's start (limit >= 4). All of it when it is not longer. */
size_t reader_cut(const char *text, size_t length, size_t limit);

/* The offset of the first byte that is not part of valid UTF-8; length when all is. */
size_t reader_valid_utf8(const char *text, size_t length);
