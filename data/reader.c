/* Lines from a stream, then documents from lines. Memory: a line buffer and the piece being gathered. */
#include "data/reader.h"

#include "data/stream.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_LIMIT_BYTES = 1 << 30, FILL_BYTES = 1 << 16 };

typedef struct bytes {
    char *data;
    size_t length, room;
} bytes;

struct reader {
    stream *in;
    char *name;
    reader_options options;
    bytes buffer; /* decompressed text from the file; [next, buffer.length) is unread */
    size_t next;
    int64_t offset; /* of buffer.data[next] in the file */
    bool ended;
    bytes line, piece;
    json_t *object; /* the document in progress: its text is handed out from `rest` on */
    const char *rest;
    size_t rest_length;
    bool open; /* text of a document that has not ended was gathered or handed out */
    reader_counts counts;
};

static status reserve(bytes *b, size_t room) {
    if (room <= b->room) return STATUS_OK;
    size_t larger = room > 2 * b->room ? room : 2 * b->room;
    char *data = realloc(b->data, larger);
    if (!data) return status_fail(STATUS_INTERNAL, "out of memory");
    b->data = data;
    b->room = larger;
    return STATUS_OK;
}

static status append(bytes *b, const char *data, size_t length) {
    TRY(reserve(b, b->length + length));
    memcpy(b->data + b->length, data, length);
    b->length += length;
    return STATUS_OK;
}

/* The bytes of the character that starts at text, 0 when it is not valid (Unicode 15, table 3-7). */
static size_t character(const unsigned char *text, size_t length) {
    unsigned char lead = text[0];
    if (lead < 0x80) return 1;
    size_t size = lead >= 0xC2 && lead < 0xE0   ? 2
                  : lead >= 0xE0 && lead < 0xF0 ? 3
                  : lead >= 0xF0 && lead < 0xF5 ? 4
                                                : 0;
    if (size == 0 || size > length) return 0;
    unsigned char least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned char most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (text[1] < least || text[1] > most) return 0;
    for (size_t i = 2; i < size; i++)
        if ((text[i] & 0xC0) != 0x80) return 0;
    return size;
}

size_t reader_valid_utf8(const char *text, size_t length) {
    for (size_t i = 0; i < length;) {
        size_t size = character((const unsigned char *)text + i, length - i);
        if (size == 0) return i;
        i += size;
    }
    return length;
}

/* Moves `at` back to a character's start; text that is not UTF-8 is cut where it is. */
static size_t character_start(const char *text, size_t at) {
    for (size_t back = 0; back < 4 && back < at; back++)
        if ((text[at - back] & 0xC0) != 0x80) return at - back;
    return at;
}

size_t reader_cut(const char *text, size_t length, size_t limit) {
    if (length <= limit) return length;
    size_t line_end = limit;
    while (line_end > 0 && text[line_end - 1] != '\n') line_end--;
    return line_end > 0 ? line_end : character_start(text, limit);
}

static status fill(reader *r) {
    if (r->next > 0) {
        memmove(r->buffer.data, r->buffer.data + r->next, r->buffer.length - r->next);
        r->buffer.length -= r->next;
        r->next = 0;
    }
    TRY(reserve(&r->buffer, r->buffer.length + FILL_BYTES));
    size_t got;
    TRY(stream_read(r->in, r->buffer.data + r->buffer.length, r->buffer.room - r->buffer.length, &got));
    r->buffer.length += got;
    r->ended = got == 0;
    return STATUS_OK;
}

/* Takes the next line with its newline from the buffer; a longer one than the limit in parts. 0 bytes at the end. */
static status take_line(reader *r, size_t limit, const char **line, size_t *length, bool *whole) {
    size_t searched = 0;
    for (;;) {
        const char *start = r->buffer.data + r->next;
        size_t have = r->buffer.length - r->next;
        const char *end = have > searched ? memchr(start + searched, '\n', have - searched) : NULL;
        if (end && (size_t)(end - start) < limit)
            *length = (size_t)(end - start) + 1, *whole = true;
        else if (have > limit)
            *length = character_start(start, limit), *whole = false;
        else if (r->ended)
            *length = have, *whole = true;
        else {
            searched = have;
            TRY(fill(r));
            continue;
        }
        *line = start;
        r->next += *length;
        r->offset += (int64_t)*length;
        return STATUS_OK;
    }
}

static status from_latin1(reader *r, const char **line, size_t *length) {
    TRY(reserve(&r->line, 2 * *length));
    r->line.length = 0;
    for (size_t i = 0; i < *length; i++) {
        unsigned char c = (unsigned char)(*line)[i];
        if (c >= 0x80) {
            r->line.data[r->line.length++] = (char)(0xC0 | c >> 6);
            c = 0x80 | (c & 0x3F);
        }
        r->line.data[r->line.length++] = (char)c;
    }
    *line = r->line.data;
    *length = r->line.length;
    return STATUS_OK;
}

/* The next line as valid UTF-8. Lines that are not, and are not to be read as Latin-1, are counted and left out. */
static status next_line(reader *r, size_t limit, const char **line, size_t *length, bool *whole) {
    for (;;) {
        int64_t offset = r->offset;
        TRY(take_line(r, limit, line, length, whole));
        if (*length == 0) return STATUS_OK;
        r->counts.lines += *whole;
        if (offset == 0 && *length >= 3 && memcmp(*line, "\xEF\xBB\xBF", 3) == 0) { /* a byte order mark is no text */
            *line += 3, *length -= 3, offset = 3;
            if (*length == 0) continue;
        }
        if (r->options.encoding == ENCODING_LATIN1) return from_latin1(r, line, length);
        size_t valid = reader_valid_utf8(*line, *length);
        if (valid == *length) return STATUS_OK;
        int64_t count = r->counts.invalid_lines++;
        if (count < READER_PLACES)
            r->counts.places[count] =
                (struct reader_place){.line = r->counts.lines + !*whole, .offset = offset + (int64_t)valid};
        if (r->options.invalid == INVALID_LATIN1) return from_latin1(r, line, length);
    }
}

/* At the end of the file: bad lines that were left out stop the reading unless that was asked for. */
static status judge(const reader *r) {
    const reader_counts *c = &r->counts;
    if (c->invalid_lines == 0 || r->options.invalid != INVALID_STOP) return STATUS_OK;
    char places[READER_PLACES * 64] = "";
    size_t used = 0;
    for (int64_t i = 0; i < c->invalid_lines && i < READER_PLACES; i++)
        used += (size_t)snprintf(places + used, sizeof places - used, "%sline %" PRId64 " byte %" PRId64, i ? ", " : "",
                                 c->places[i].line, c->places[i].offset);
    return status_fail(STATUS_DATA,
                       "%s: %" PRId64 " line%s not UTF-8 (%s%s); --invalid latin1 reads such lines as Latin-1, "
                       "--invalid skip leaves them out, --encoding latin1 reads all as Latin-1",
                       r->name, c->invalid_lines, c->invalid_lines == 1 ? " is" : "s are", places,
                       c->invalid_lines > READER_PLACES ? ", ..." : "");
}

static void hand_out(reader *r, reader_piece *piece, const char *text, size_t length, bool ends) {
    *piece = (reader_piece){text, length, ends};
    r->counts.bytes += (int64_t)length;
    r->counts.documents += ends;
    r->open = !ends;
}

static bool blank(const char *line, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!strchr(" \t\r\n", line[i]) || line[i] == '\0') return false;
    return true;
}

static status binary(const reader *r) {
    return status_fail(STATUS_DATA,
                       "%s: line %" PRId64 " holds a NUL byte: it is a binary file or UTF-16, not UTF-8 text", r->name,
                       r->counts.lines);
}

static status next_text(reader *r, reader_piece *piece, bool *done) {
    reader_documents documents = r->options.documents;
    r->piece.length = 0;
    while (r->piece.length < READER_PIECE_BYTES) {
        const char *line;
        size_t length;
        bool whole;
        TRY(next_line(r, READER_PIECE_BYTES, &line, &length, &whole));
        *done = length == 0 && !r->open;
        if (*done) return STATUS_OK;
        if (memchr(line, '\0', length)) return binary(r);
        bool ends = length == 0; /* the file's end */
        if (documents == DOCUMENTS_LINES && whole && length > 0) {
            while (length > 0 && (line[length - 1] == '\n' || line[length - 1] == '\r')) length--;
            ends = true;
            if (length == 0 && !r->open) continue;
        } else if (documents == DOCUMENTS_BLANK_LINES && whole && blank(line, length)) {
            length = 0;
            ends = true;
            if (!r->open) continue;
        }
        TRY(append(&r->piece, line, length));
        r->open = true;
        if (ends) {
            hand_out(r, piece, r->piece.data, r->piece.length, true);
            return STATUS_OK;
        }
    }
    hand_out(r, piece, r->piece.data, r->piece.length, false);
    return STATUS_OK;
}

static status parse(reader *r, const char *line, size_t length) {
    json_error_t error;
    const char *name = r->name, *field = r->options.field;
    int64_t number = r->counts.lines;
    r->object = json_loadb(line, length, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
    if (!r->object) return status_fail(STATUS_DATA, "%s:%" PRId64 ": no JSON: %s", name, number, error.text);
    if (!json_is_object(r->object))
        return status_fail(STATUS_DATA, "%s:%" PRId64 ": not a JSON object with a field \"%s\"", name, number, field);
    json_t *value = json_object_get(r->object, field);
    if (!value) {
        const char *other = json_object_iter_key(json_object_iter(r->object));
        return status_fail(STATUS_DATA, "%s:%" PRId64 ": no field \"%s\"%s%s%s; choose it with --field", name, number,
                           field, other ? "; the first is \"" : "", other ? other : "", other ? "\"" : "");
    }
    if (!json_is_string(value))
        return status_fail(STATUS_DATA, "%s:%" PRId64 ": field \"%s\" is no string", name, number, field);
    r->rest = json_string_value(value);
    r->rest_length = json_string_length(value);
    return STATUS_OK;
}

static status next_json(reader *r, reader_piece *piece, bool *done) {
    while (r->rest_length == 0) {
        const char *line;
        size_t length;
        bool whole;
        json_decref(r->object);
        r->object = NULL;
        TRY(next_line(r, LINE_LIMIT_BYTES, &line, &length, &whole));
        *done = length == 0;
        if (*done) return STATUS_OK;
        if (!whole)
            return status_fail(STATUS_DATA, "%s:%" PRId64 ": the line is longer than %d bytes", r->name,
                               r->counts.lines + 1, LINE_LIMIT_BYTES);
        if (!blank(line, length)) TRY(parse(r, line, length));
    }
    size_t length = reader_cut(r->rest, r->rest_length, READER_PIECE_BYTES);
    hand_out(r, piece, r->rest, length, length == r->rest_length);
    r->rest += length;
    r->rest_length -= length;
    return STATUS_OK;
}

status reader_next(reader *r, reader_piece *piece, bool *done) {
    *done = false;
    TRY(r->options.format == FORMAT_JSONL ? next_json(r, piece, done) : next_text(r, piece, done));
    return *done ? judge(r) : STATUS_OK;
}

const reader_counts *reader_count(const reader *r) {
    return &r->counts;
}

static bool ends_with(const char *name, size_t length, const char *ending) {
    size_t tail = strlen(ending);
    return length > tail && memcmp(name + length - tail, ending, tail) == 0;
}

static reader_format format_of(const char *name) {
    size_t length = strlen(name);
    if (ends_with(name, length, ".gz"))
        length -= 3;
    else if (ends_with(name, length, ".zst"))
        length -= 4;
    static const char *const of_lines[] = {".jsonl", ".ndjson", ".json"}; /* the last as in C4: an object a line */
    for (size_t i = 0; i < sizeof of_lines / sizeof *of_lines; i++)
        if (ends_with(name, length, of_lines[i])) return FORMAT_JSONL;
    return FORMAT_TEXT;
}

status reader_open(reader **out, int fd, const char *name, const reader_options *options) {
    *out = NULL;
    reader *r = calloc(1, sizeof *r);
    if (!r || !(r->name = strdup(name))) {
        free(r);
        close(fd);
        return status_fail(STATUS_INTERNAL, "out of memory");
    }
    r->options = *options;
    if (r->options.format == FORMAT_BY_NAME) r->options.format = format_of(name);
    status result = stream_open(&r->in, fd, name);
    if (result != STATUS_OK)
        reader_close(r);
    else
        *out = r;
    return result;
}

void reader_close(reader *r) {
    if (!r) return;
    stream_close(r->in);
    json_decref(r->object);
    free(r->buffer.data);
    free(r->line.data);
    free(r->piece.data);
    free(r->name);
    free(r);
}
