/* Shards: what is written is read back, llm.c's bytes are understood, and damaged or foreign files are refused by name.
 */
#include "check.h"

#include "data/shard.h"
#include "folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER_BYTES = 1024 };

static void write_file(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

/* A shard as llm.c's scripts write it. */
static void write_shard(const char *path, int32_t magic, int32_t version, int32_t count, const void *body,
                        size_t bytes) {
    char *file = calloc(1, HEADER_BYTES + bytes + 1);
    memcpy(file, (int32_t[]){magic, version, count}, 12);
    if (bytes) memcpy(file + HEADER_BYTES, body, bytes);
    write_file(path, file, HEADER_BYTES + bytes);
    free(file);
}

static void write_tokens(const char *path, int64_t largest_id, const int32_t *tokens, int64_t count) {
    shard_writer *w;
    check_status(shard_writer_open(&w, path, largest_id), STATUS_OK);
    check_status(shard_writer_add(w, tokens, count / 2), STATUS_OK);
    check_status(shard_writer_add(w, tokens + count / 2, count - count / 2), STATUS_OK);
    check_status(shard_writer_finish(w), STATUS_OK);
}

static void round_trip(int64_t largest_id, int want_bytes) {
    folder f = folder_make();
    enum { COUNT = 100001 };
    int32_t *tokens = malloc(COUNT * sizeof *tokens), *back = malloc(COUNT * sizeof *back);
    for (int64_t i = 0; i < COUNT; i++) tokens[i] = (int32_t)(i * 7919 % (largest_id + 1));
    tokens[0] = (int32_t)largest_id;
    const char *path = folder_path(&f, "a.bin");
    write_tokens(path, largest_id, tokens, COUNT);
    shard s;
    check_status(shard_open(&s, path), STATUS_OK);
    assert_int_equal(s.tokens, COUNT);
    assert_int_equal(s.token_bytes, want_bytes);
    shard_read(&s, 0, COUNT, back);
    assert_memory_equal(tokens, back, COUNT * sizeof *tokens);
    shard_read(&s, COUNT - 3, 3, back);
    assert_memory_equal(tokens + COUNT - 3, back, 3 * sizeof *tokens);
    shard_close(&s);
    free(tokens);
    free(back);
    folder_remove(&f);
}

/* docs/cases.md 12: vocabularies of 65536, 65537 and 70000 ids. */
static void width_follows_the_largest_id(void **state) {
    round_trip(65535, 2);
    round_trip(65536, 4);
    round_trip(69999, 4);
    round_trip(0, 2);
}

static void writer_refuses_ids_outside_the_vocabulary(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.bin");
    const int32_t bad[] = {512, -1, 65536 + 3};
    for (int i = 0; i < 3; i++) {
        shard_writer *w;
        check_status(shard_writer_open(&w, path, 511), STATUS_OK);
        check_status(shard_writer_add(w, (int32_t[]){1, 2, 511}, 3), STATUS_OK);
        check_status(shard_writer_add(w, &bad[i], 1), STATUS_DATA);
        assert_non_null(strstr(status_message(), "token 3 "));
        status_clear();
        shard_writer_discard(w);
    }
    assert_int_equal(folder_entries(&f), 0);
    folder_remove(&f);
}

static void reads_shards_of_llm_c(void **state) {
    folder f = folder_make();
    shard s;
    int32_t out[3];
    const char *narrow = folder_path(&f, "a.bin"), *wide = folder_path(&f, "b.bin");
    write_shard(narrow, 20240520, 1, 3, (uint16_t[]){50256, 0, 65535}, 6);
    check_status(shard_open(&s, narrow), STATUS_OK);
    shard_read(&s, 0, 3, out);
    assert_memory_equal(out, ((int32_t[]){50256, 0, 65535}), sizeof out);
    shard_close(&s);
    write_shard(wide, 20240801, 7, 3, (uint32_t[]){128000, 0, 65536}, 12);
    check_status(shard_open(&s, wide), STATUS_OK);
    shard_read(&s, 0, 3, out);
    assert_memory_equal(out, ((int32_t[]){128000, 0, 65536}), sizeof out);
    shard_close(&s);
    folder_remove(&f);
}

static void refused(const char *path, status want, const char *words) {
    shard s;
    check_status(shard_open(&s, path), want);
    if (!strstr(status_message(), words) || !strstr(status_message(), path))
        fail_msg("\"%s\" does not say \"%s\"", status_message(), words);
    status_clear();
}

static void refuses_damaged_and_foreign_files(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.bin");
    uint16_t body[100] = {0};
    refused(path, STATUS_NO_INPUT, "No such file");
    write_file(path, "", 0);
    refused(path, STATUS_DATA, "0 bytes");
    write_file(path, "a text", 6);
    refused(path, STATUS_DATA, "6 bytes");
    write_shard(path, 20240520, 7, 100, body, sizeof body);
    refused(path, STATUS_DATA, "version 7");
    write_shard(path, 20240801, 1, 100, body, sizeof body);
    refused(path, STATUS_DATA, "version 1");
    write_shard(path, 20240520, 1, 100, body, sizeof body - 2);
    refused(path, STATUS_DATA, "says 100 tokens, its size says 99");
    write_shard(path, 20240520, 1, 99, body, sizeof body);
    refused(path, STATUS_DATA, "says 99 tokens, its size says 100");
    write_shard(path, 20240520, 1, 100, body, sizeof body - 1);
    refused(path, STATUS_DATA, "multiple of 2");
    write_shard(path, 20240801, 7, 50, body, sizeof body - 2);
    refused(path, STATUS_DATA, "multiple of 4");
    char *text = malloc(5000);
    memset(text, 'x', 5000);
    write_file(path, text, 5000);
    free(text);
    refused(path, STATUS_DATA, "no token shard");
    refused(f.path, STATUS_DATA, "not a file");
    folder_remove(&f);
}

static void an_unreadable_shard_is_no_input(void **state) {
    if (geteuid() == 0) skip(); /* root reads everything */
    folder f = folder_make();
    const char *path = folder_path(&f, "a.bin");
    write_shard(path, 20240520, 1, 0, NULL, 0);
    assert_int_equal(chmod(path, 0), 0);
    refused(path, STATUS_NO_INPUT, "Permission denied");
    folder_remove(&f);
}

/* Sparse files, so that sizes past int32 cost no disk: the size decides, whatever the header holds. */
static void sizes_past_int32_come_from_the_file(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.bin");
    const int64_t count = 3000000000;
    const int32_t headers[] = {(int32_t)(uint32_t)count, 0, INT32_MAX, -1};
    for (int i = 0; i < 4; i++) {
        write_shard(path, 20240520, 1, headers[i], NULL, 0);
        assert_int_equal(truncate(path, HEADER_BYTES + 2 * count), 0);
        int fd = open(path, O_WRONLY);
        assert_int_equal(pwrite(fd, (uint16_t[]){4711}, 2, HEADER_BYTES + 2 * (count - 1)), 2);
        close(fd);
        shard s;
        check_status(shard_open(&s, path), STATUS_OK);
        assert_int_equal(s.tokens, count);
        int32_t last;
        shard_read(&s, count - 1, 1, &last);
        assert_int_equal(last, 4711);
        shard_close(&s);
    }
    write_shard(path, 20240520, 1, -1, NULL, 0);
    refused(path, STATUS_DATA, "says -1 tokens");
    folder_remove(&f);
}

static void a_shard_appears_only_when_whole(void **state) {
    folder f = folder_make();
    shard_writer *w;
    const char *path = folder_path(&f, "a.bin");
    check_status(shard_writer_open(&w, path, 10), STATUS_OK);
    check_status(shard_writer_add(w, (int32_t[]){1, 2}, 2), STATUS_OK);
    assert_int_not_equal(access(path, F_OK), 0);
    check_status(shard_writer_finish(w), STATUS_OK);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(folder_entries(&f), 1);
    check_status(shard_writer_open(&w, folder_path(&f, "none/a.bin"), 10), STATUS_IO);
    assert_null(w);
    status_clear();
    folder_remove(&f);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(width_follows_the_largest_id),    cmocka_unit_test(writer_refuses_ids_outside_the_vocabulary),
    cmocka_unit_test(reads_shards_of_llm_c),           cmocka_unit_test(refuses_damaged_and_foreign_files),
    cmocka_unit_test(an_unreadable_shard_is_no_input), cmocka_unit_test(sizes_past_int32_come_from_the_file),
    cmocka_unit_test(a_shard_appears_only_when_whole),
};
TEST_MAIN(tests)
