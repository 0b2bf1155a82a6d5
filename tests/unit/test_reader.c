/* The reader: documents of every kind of file come out whole and unchanged, and what is not text is named by place. */
#include "check.h"

#include "core/file.h"
#include "core/rng.h"
#include "data/reader.h"
#include "folder.h"

#include <fcntl.h>
#include <time.h>
#include <zlib.h>
#include <zstd.h>

/* All documents of a file, one behind the other. */
typedef struct documents {
    int count;
    char *text;
    size_t length, ends[64];
    reader_counts counts;
} documents;

static status read_fd(documents *d, int fd, const char *name, const reader_options *options) {
    *d = (documents){0};
    reader *r;
    TRY(reader_open(&r, fd, name, options));
    reader_piece piece;
    bool done;
    status result;
    while ((result = reader_next(r, &piece, &done)) == STATUS_OK && !done) {
        assert_in_range(piece.length, 0, 2 * READER_PIECE_BYTES);
        assert_int_equal(reader_valid_utf8(piece.text, piece.length), piece.length);
        d->text = realloc(d->text, d->length + piece.length + 1);
        if (piece.length) memcpy(d->text + d->length, piece.text, piece.length);
        d->length += piece.length;
        d->text[d->length] = '\0';
        if (piece.ends_document) {
            assert_in_range(d->count, 0, 63);
            d->ends[d->count++] = d->length;
        }
    }
    d->counts = *reader_count(r);
    reader_close(r);
    if (result == STATUS_OK) {
        assert_int_equal(d->counts.documents, d->count);
        assert_int_equal(d->counts.bytes, d->length);
        assert_int_equal(d->count ? d->ends[d->count - 1] : 0, d->length);
    }
    return result;
}

static status read_path(documents *d, const char *path, const reader_options *options) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) fail_msg("cannot open %s", path);
    return read_fd(d, fd, path, options);
}

static void put(const char *path, const void *data, size_t bytes) {
    check_status(file_write_atomic(path, data, bytes), STATUS_OK);
}
#define PUT(path, literal) put(path, literal, sizeof(literal) - 1)

/* The file's documents, joined by |. */
static void expect(const char *path, const reader_options *options, const char *want) {
    documents d;
    char got[4096] = "";
    check_status(read_path(&d, path, options), STATUS_OK);
    for (int i = 0; i < d.count; i++) {
        size_t start = i ? d.ends[i - 1] : 0;
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%.*s", i ? "|" : "", (int)(d.ends[i] - start),
                 d.text + start);
    }
    assert_string_equal(got, want);
    free(d.text);
}

static void refuse(const char *path, const reader_options *options, status want, const char *words) {
    documents d;
    check_status(read_path(&d, path, options), want);
    if (!strstr(status_message(), words) || !strstr(status_message(), path))
        fail_msg("\"%s\" does not say \"%s\"", status_message(), words);
    status_clear();
    free(d.text);
}

static const reader_options plain = {.field = "text"};

static void documents_of_a_text_file(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.txt");
    reader_options blanks = plain, lines = plain;
    blanks.documents = DOCUMENTS_BLANK_LINES;
    lines.documents = DOCUMENTS_LINES;
    PUT(path, "\n one\ntwo\r\n\n \t\r\n\nthree\n\nfour");
    expect(path, &plain, "\n one\ntwo\r\n\n \t\r\n\nthree\n\nfour");
    expect(path, &blanks, " one\ntwo\r\n|three\n|four");
    expect(path, &lines, " one|two| \t|three|four");
    PUT(path, "");
    expect(path, &plain, "");
    expect(path, &lines, "");
    PUT(path, "\n\n");
    expect(path, &plain, "\n\n");
    expect(path, &blanks, "");
    expect(path, &lines, "");
    PUT(path, "\xEF\xBB\xBFmark\xEF\xBB\xBF\n");
    expect(path, &plain, "mark\xEF\xBB\xBF\n");
    PUT(path, "\xEF\xBB\xBF");
    expect(path, &plain, "");
    folder_remove(&f);
}

static void documents_of_json_lines(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.jsonl");
    reader_options body = plain;
    body.field = "body";
    PUT(path,
        "{\"text\": \"one\\n\\u00e9\", \"id\": 123456789012345678901234567890}\n\n  \n{\"body\": 3, \"text\": \"\"}\r\n"
        "{\"text\": \"\\ud83d\\ude00 two\"}");
    expect(path, &plain, "one\n\xC3\xA9|\xF0\x9F\x98\x80 two");
    refuse(path, &body, STATUS_DATA, ":1: no field \"body\"; the first is \"text\"");
    PUT(path, "{\"body\": \"a\"}\n{\"body\": [\"b\"]}\n");
    refuse(path, &body, STATUS_DATA, ":2: field \"body\" is no string");
    static const char *const bad[] = {"{\"text\": \"a\"",    "[1]",     "text", "{\"text\": \"\\ud800\"}",
                                      "{\"text\": \"a\"} x", "\"text\""};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char file[256];
        int length = snprintf(file, sizeof file, "{\"text\": \"fine\"}\n\n%s\n{\"text\": \"fine\"}\n", bad[i]);
        put(path, file, (size_t)length);
        refuse(path, &plain, STATUS_DATA, ":3: ");
    }
    documents d;
    PUT(path, "{\"text\": \"a\\u0000b\"}\n");
    check_status(read_path(&d, path, &plain), STATUS_OK);
    assert_int_equal(d.length, 3);
    assert_memory_equal(d.text, "a\0b", 3);
    free(d.text);
    /* The name decides unless the options do. */
    const char *text = folder_path(&f, "a.txt");
    reader_options json = plain;
    json.format = FORMAT_JSONL;
    PUT(text, "{\"text\": \"a\"}");
    expect(text, &plain, "{\"text\": \"a\"}");
    expect(text, &json, "a");
    folder_remove(&f);
}

/* A JSON line nested a million deep must not exhaust the stack. */
static void deep_json_is_refused(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.jsonl");
    size_t depth = 1000000;
    char *line = malloc(depth);
    memset(line, '[', depth);
    put(path, line, depth);
    free(line);
    refuse(path, &plain, STATUS_DATA, ":1: no JSON");
    folder_remove(&f);
}

static size_t gzip(const char *text, size_t length, unsigned char *out, size_t room) {
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (unsigned char *)text, z.avail_in = (unsigned)length, z.next_out = out, z.avail_out = (unsigned)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return room - z.avail_out;
}

static size_t zstd(const char *text, size_t length, unsigned char *out, size_t room) {
    size_t made = ZSTD_compress(out, room, text, length, 3);
    assert_false(ZSTD_isError(made));
    return made;
}

/* Two members or frames; every proper prefix but the first member's end is refused as truncated, as is an empty file.
 */
static void compressed(const char *name, size_t (*compress)(const char *, size_t, unsigned char *, size_t)) {
    folder f = folder_make();
    char one[64];
    snprintf(one, sizeof one, "a.txt%s", name);
    const char *path = folder_path(&f, one), *unnamed = folder_path(&f, "b.txt");
    snprintf(one, sizeof one, "c.jsonl%s", name);
    const char *json = folder_path(&f, one);
    unsigned char file[1024];
    size_t first = compress("first\n", 6, file, sizeof file);
    size_t all = first + compress("second\n", 7, file + first, sizeof file - first);
    put(path, file, all);
    expect(path, &plain, "first\nsecond\n");
    put(unnamed, file, all); /* known by its first bytes */
    expect(unnamed, &plain, "first\nsecond\n");
    for (size_t length = 0; length < all; length++) {
        put(path, file, length);
        if (length == first)
            expect(path, &plain, "first\n");
        else
            refuse(path, &plain, STATUS_DATA, "truncated");
    }
    PUT(path, "this is not compressed");
    refuse(path, &plain, STATUS_DATA, "is no ");
    memcpy(file + all, "trailing rubbish", 16);
    put(path, file, all + 16);
    refuse(path, &plain, STATUS_DATA, "damaged");
    for (size_t i = 0; i < first; i++) { /* any outcome but a crash or a hang */
        documents d;
        unsigned char kept = file[i];
        file[i] ^= 0x55;
        put(path, file, all);
        read_path(&d, path, &plain);
        status_clear();
        free(d.text);
        file[i] = kept;
    }
    static const char line[] = "{\"text\": \"in json\"}\n";
    put(json, file, compress(line, sizeof line - 1, file, sizeof file));
    expect(json, &plain, "in json");
    folder_remove(&f);
}

static void gzip_files(void **state) {
    compressed(".gz", gzip);
}
static void zstd_files(void **state) {
    compressed(".zst", zstd);
}

static void pipes_are_read_to_the_end(void **state) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "from a pipe", 11), 11);
    close(ends[1]);
    documents d;
    check_status(read_fd(&d, ends[0], "standard input", &plain), STATUS_OK);
    assert_string_equal(d.text, "from a pipe");
    free(d.text);
}

static void folders_and_binary_files_are_refused(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.txt");
    refuse(f.path, &plain, STATUS_NO_INPUT, "is a folder");
    PUT(path, "text\nb\0inary");
    refuse(path, &plain, STATUS_DATA, "line 2 holds a NUL byte");
    PUT(path, "\xFF\xFEU\0T\0F\0");
    reader_options latin = plain;
    latin.encoding = ENCODING_LATIN1;
    refuse(path, &latin, STATUS_DATA, "NUL byte");
    folder_remove(&f);
}

static void lines_that_are_not_utf8(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.txt");
    reader_options latin = plain, skip_them = plain, all = plain;
    latin.invalid = INVALID_LATIN1;
    skip_them.invalid = INVALID_SKIP;
    all.encoding = ENCODING_LATIN1;
    PUT(path, "caf\xC3\xA9\nfa\xE7"
              "ade\nend\n\x92");
    refuse(path, &plain, STATUS_DATA, "2 lines are not UTF-8 (line 2 byte 8, line 4 byte 17)");
    expect(path, &latin,
           "caf\xC3\xA9\nfa\xC3\xA7"
           "ade\nend\n\xC2\x92");
    expect(path, &skip_them, "caf\xC3\xA9\nend\n");
    expect(path, &all,
           "caf\xC3\x83\xC2\xA9\nfa\xC3\xA7"
           "ade\nend\n\xC2\x92");
    documents d;
    check_status(read_path(&d, path, &latin), STATUS_OK);
    assert_int_equal(d.counts.invalid_lines, 2);
    assert_int_equal(d.counts.lines, 4);
    assert_int_equal(d.counts.places[1].offset, 17);
    free(d.text);
    /* More bad lines than places are counted all the same. */
    char many[200];
    for (int i = 0; i < 100; i++) memcpy(many + 2 * i, "\xFF\n", 2);
    put(path, many, sizeof many);
    refuse(path, &plain, STATUS_DATA, "100 lines are not UTF-8 (line 1 byte 0, line 2 byte 2,");
    folder_remove(&f);
}

static void utf8_is_judged_by_the_standard(void **state) {
    for (uint32_t c = 0; c < 0x110000; c++) { /* every scalar value is valid, alone and only in its shortest form */
        char b[4];
        size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        static const unsigned char leads[] = {0, 0, 0xC0, 0xE0, 0xF0};
        for (size_t i = n; i-- > 1;) b[i] = (char)(0x80 | ((c >> 6 * (n - 1 - i)) & 0x3F));
        b[0] = (char)(leads[n] | c >> 6 * (n - 1));
        bool surrogate = c >= 0xD800 && c < 0xE000;
        assert_int_equal(reader_valid_utf8(b, n), surrogate ? 0 : n);
        for (size_t cut = 1; cut < n; cut++) assert_int_equal(reader_valid_utf8(b, cut), 0);
    }
    static const char *const bad[] = {"\x80",
                                      "\xBF",
                                      "\xC0\x80",
                                      "\xC1\xBF",
                                      "\xE0\x9F\xBF",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xFE",
                                      "\xFF",
                                      "\xC3(",
                                      "\xE2\x82(",
                                      "\xF0\x9F\x98(",
                                      "\xED\xA0\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[16];
        snprintf(text, sizeof text, "ab%s", bad[i]);
        assert_int_equal(reader_valid_utf8(text, strlen(text)), 2);
    }
}

/* Files larger than a piece, with lines longer than one, of characters of every length: nothing is lost at the seams.
 */
static void large_files_come_in_pieces(void **state) {
    folder f = folder_make();
    const char *text_path = folder_path(&f, "a.txt"), *json_path = folder_path(&f, "a.jsonl");
    const uint64_t seeds[] = {1, 2, (uint64_t)time(NULL)};
    static const char *const characters[] = {"a",  "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80",
                                             "\n", "b",        "\xE4\xB8\xAD", " "};
    for (int k = 0; k < 3; k++) {
        size_t length = 0, room = 5 << 20;
        char *text = malloc(room + 64), *json = malloc(2 * room);
        bool newlines = k != 1; /* once as a single line of 5 MiB */
        for (uint64_t i = 0; length < room; i++) {
            uint64_t r = rng_u64(seeds[k], 7, i);
            const char *c = characters[r % 8];
            if (*c == '\n' && (!newlines || r >> 60)) c = "x";
            size_t bytes = strlen(c);
            memcpy(text + length, c, bytes);
            length += bytes;
        }
        documents d;
        put(text_path, text, length);
        check_status(read_path(&d, text_path, &plain), STATUS_OK);
        if (d.length != length || memcmp(d.text, text, length) != 0)
            fail_msg("text, seed %llu", (unsigned long long)seeds[k]);
        assert_int_equal(d.count, 1);
        free(d.text);
        size_t written = (size_t)sprintf(json, "{\"text\": \"");
        for (size_t i = 0; i < length; i++) {
            if (text[i] == '\n')
                json[written++] = '\\', json[written++] = 'n';
            else
                json[written++] = text[i];
        }
        memcpy(json + written, "\"}", 2);
        put(json_path, json, written + 2);
        check_status(read_path(&d, json_path, &plain), STATUS_OK);
        if (d.length != length || memcmp(d.text, text, length) != 0)
            fail_msg("json, seed %llu", (unsigned long long)seeds[k]);
        assert_int_equal(d.count, 1);
        free(d.text);
        free(text);
        free(json);
    }
    folder_remove(&f);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(documents_of_a_text_file),
    cmocka_unit_test(documents_of_json_lines),
    cmocka_unit_test(deep_json_is_refused),
    cmocka_unit_test(gzip_files),
    cmocka_unit_test(zstd_files),
    cmocka_unit_test(pipes_are_read_to_the_end),
    cmocka_unit_test(folders_and_binary_files_are_refused),
    cmocka_unit_test(lines_that_are_not_utf8),
    cmocka_unit_test(utf8_is_judged_by_the_standard),
    cmocka_unit_test(large_files_come_in_pieces),
};
TEST_MAIN(tests)
