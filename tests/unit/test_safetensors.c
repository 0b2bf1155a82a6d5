/* safetensors: what is written reads back; every malformed file of the known kinds is refused with its reason. */
#include "check.h"

#include "core/safetensors.h"

#include <unistd.h>

static char folder[64], file[96];

static int make_folder(void **state) {
    strcpy(folder, "/tmp/bulkhead-safetensors-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(file, sizeof file, "%s/model.safetensors", folder);
    return 0;
}

static int remove_folder(void **state) {
    unlink(file);
    return rmdir(folder); /* fails when something was left behind */
}

/* A file of this length field, header and count zero bytes. */
static void put_file(uint64_t length, const char *header, size_t data_bytes) {
    FILE *f = fopen(file, "wb");
    assert_non_null(f);
    fwrite(&length, sizeof length, 1, f);
    fputs(header, f);
    for (size_t i = 0; i < data_bytes; i++) fputc((int)i, f);
    assert_int_equal(fclose(f), 0);
}

static status open_header(safetensors *f, const char *header, size_t data_bytes) {
    put_file(strlen(header), header, data_bytes);
    status_clear();
    return safetensors_open(f, file);
}

static void expect_bad(const char *header, size_t data_bytes, const char *reason) {
    safetensors f;
    status got = open_header(&f, header, data_bytes);
    if (got != STATUS_DATA || !strstr(status_message(), reason) || !strstr(status_message(), "model.safetensors"))
        fail_msg("%s: %s (%s), want \"%s\"", header, status_text(got), status_message(), reason);
}

static void round_trip(void **state) {
    const float matrix[6] = {1, -2, 3.5f, 0, 1e-40f, 6};
    const int64_t vector[2] = {INT64_MIN, INT64_MAX};
    const double scalar[1] = {0.1};
    const uint16_t half[3] = {0x3c00, 0xc000, 0x0001}, brain[1] = {0x3f80};
    const safetensors_entry entries[] = {
        {"layers.0.W_Q", SAFETENSORS_F32, 2, {2, 3}, matrix, sizeof matrix},
        {"b", SAFETENSORS_BF16, 1, {1}, brain, sizeof brain},
        {"ints", SAFETENSORS_I64, 1, {2}, vector, sizeof vector},
        {"scalar", SAFETENSORS_F64, 0, {0}, scalar, sizeof scalar},
        {"half", SAFETENSORS_F16, 3, {1, 3, 1}, half, sizeof half},
        {"empty", SAFETENSORS_F32, 2, {0, 7}, NULL, 0},
    };
    const char *const metadata[][2] = {{"format", "pt"}, {"step", "12"}};
    check_status(safetensors_write(file, entries, 6, metadata, 2), STATUS_OK);
    safetensors f;
    check_status(safetensors_open(&f, file), STATUS_OK);
    assert_int_equal(f.count, 6);
    assert_string_equal(safetensors_metadata(&f, "format"), "pt");
    assert_null(safetensors_metadata(&f, "nothing"));
    for (int i = 0; i < 6; i++) {
        const safetensors_entry *e = safetensors_find(&f, entries[i].name);
        assert_non_null(e);
        assert_int_equal(e->type, entries[i].type);
        assert_int_equal(e->rank, entries[i].rank);
        for (int j = 0; j < e->rank; j++) assert_int_equal(e->shape[j], entries[i].shape[j]);
        assert_int_equal(e->bytes, entries[i].bytes);
        if (e->bytes) assert_memory_equal(e->data, entries[i].data, e->bytes);
    }
    assert_null(safetensors_find(&f, "W_K"));
    float values[6];
    check_status(safetensors_f32(safetensors_find(&f, "layers.0.W_Q"), values), STATUS_OK);
    for (int i = 0; i < 6; i++) check_near(values[i], matrix[i], 0);
    check_status(safetensors_f32(safetensors_find(&f, "half"), values), STATUS_OK);
    check_near(values[0], 1, 0);
    check_near(values[1], -2, 0);
    check_near(values[2], 0x1p-24, 0);
    check_status(safetensors_f32(safetensors_find(&f, "b"), values), STATUS_OK);
    check_near(values[0], 1, 0);
    check_status(safetensors_f32(safetensors_find(&f, "scalar"), values), STATUS_OK);
    check_near(values[0], 0.1f, 0);
    check_status(safetensors_f32(safetensors_find(&f, "ints"), values), STATUS_DATA);
    int64_t whole[2];
    status_clear();
    check_status(safetensors_i64(safetensors_find(&f, "ints"), whole), STATUS_OK);
    assert_true(whole[0] == INT64_MIN && whole[1] == INT64_MAX);
    check_status(safetensors_i64(safetensors_find(&f, "half"), whole), STATUS_DATA);
    safetensors_close(&f);
}

/* All 65536 halves, against their definition. */
static void halves(void **state) {
    static uint16_t bits[65536];
    static float got[65536];
    for (int i = 0; i < 65536; i++) bits[i] = (uint16_t)i;
    const safetensors_entry e = {"h", SAFETENSORS_F16, 1, {65536}, bits, sizeof bits};
    check_status(safetensors_f32(&e, got), STATUS_OK);
    for (int i = 0; i < 65536; i++) {
        int exponent = i >> 10 & 31, fraction = i & 1023;
        double want = exponent == 31 ? (fraction ? NAN : INFINITY)
                                     : ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
        if (i & 0x8000) want = -want;
        if (isnan(want) ? !isnan(got[i]) : got[i] != want || !signbit(got[i]) != !signbit(want))
            fail_msg("half %04x is %g, want %g", (unsigned)i, (double)got[i], want);
    }
}

static void rows_of_a_matrix(void **state) {
    const float matrix[6] = {1, 2, 3, 4, 5, 6};
    const safetensors_entry e = {"m", SAFETENSORS_F32, 2, {3, 2}, matrix, sizeof matrix};
    safetensors_entry last = safetensors_rows(&e, 1, 2);
    float got[4];
    assert_int_equal(safetensors_elements(&last), 4);
    assert_int_equal(last.bytes, sizeof got);
    check_status(safetensors_f32(&last, got), STATUS_OK);
    for (int i = 0; i < 4; i++) check_near(got[i], i + 3, 0);
    const safetensors_entry v = {"v", SAFETENSORS_F32, 1, {6}, matrix, sizeof matrix};
    last = safetensors_rows(&v, 0, 1);
    assert_int_equal(safetensors_elements(&last), 6);
    assert_ptr_equal(last.data, matrix);
}

/* What was let go reads the same again, and its neighbours were never touched. */
static void let_go(void **state) {
    enum { COUNT = 20000 };
    static float values[COUNT], got[COUNT];
    for (int i = 0; i < COUNT; i++) values[i] = (float)i;
    const safetensors_entry entries[] = {{"a", SAFETENSORS_F32, 1, {COUNT}, values, sizeof values},
                                         {"b", SAFETENSORS_F32, 1, {0}, values, 0},
                                         {"c", SAFETENSORS_F32, 1, {COUNT}, values, sizeof values}};
    check_status(safetensors_write(file, entries, 3, NULL, 0), STATUS_OK);
    safetensors f;
    check_status(safetensors_open(&f, file), STATUS_OK);
    for (int i = 0; i < 3; i++) safetensors_let_go(&f, &f.entries[i]);
    for (int i = 0; i < 3; i += 2) {
        check_status(safetensors_f32(&f.entries[i], got), STATUS_OK);
        assert_memory_equal(got, values, sizeof values);
    }
    safetensors_close(&f);
}

static void integers(void **state) {
    safetensors f;
    check_status(open_header(&f,
                             "{\"a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                             "\"b\":{\"dtype\":\"U64\",\"shape\":[1],\"data_offsets\":[2,10]}}",
                             10),
                 STATUS_OK);
    int64_t values[2];
    check_status(safetensors_i64(safetensors_find(&f, "a"), values), STATUS_OK);
    assert_int_equal(values[1], 1);
    check_status(safetensors_i64(safetensors_find(&f, "b"), values), STATUS_OK);
    assert_true(values[0] == 0x0908070605040302);
    safetensors_close(&f);
}

static void duplicate_on_write(void **state) {
    const float one = 1;
    const safetensors_entry twice[] = {{"a", SAFETENSORS_F32, 1, {1}, &one, 4},
                                       {"a", SAFETENSORS_F32, 1, {1}, &one, 4}};
    check_status(safetensors_write(file, twice, 2, NULL, 0), STATUS_INTERNAL);
    assert_int_not_equal(access(file, F_OK), 0);
    status_clear();
    check_status(safetensors_write("/nowhere/at/all", twice, 1, NULL, 0), STATUS_IO);
}

/* The two odd but valid kinds. */
static void odd_but_valid(void **state) {
    safetensors f;
    const char *odd = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    assert_int_not_equal(strlen(odd) % 8, 0);
    check_status(open_header(&f, odd, 4), STATUS_OK);
    float value;
    check_status(safetensors_f32(safetensors_find(&f, "a"), &value), STATUS_OK); /* unaligned */
    safetensors_close(&f);
    check_status(open_header(&f,
                             "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                             "\"a\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[0,0]},"
                             "\"c\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]}}",
                             4),
                 STATUS_OK);
    assert_int_equal(safetensors_elements(safetensors_find(&f, "a")), 0);
    safetensors_close(&f);
    check_status(open_header(&f, "{}", 0), STATUS_OK);
    assert_null(safetensors_find(&f, "a"));
    safetensors_close(&f);
    check_status(open_header(&f, "{\"__metadata__\":{\"a\":\"b\"}}    ", 0), STATUS_OK);
    safetensors_close(&f);
}

static void bad_lengths(void **state) {
    safetensors f;
    static const uint64_t lengths[] = {3, 100, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7};
    static const char *const reasons[] = {"no JSON", "past the end", "past the end", "past the end", "past the end"};
    for (int i = 0; i < 5; i++) {
        put_file(lengths[i], "{\"a\":1}", 0);
        status_clear();
        check_status(safetensors_open(&f, file), STATUS_DATA);
        if (!strstr(status_message(), reasons[i])) fail_msg("%s, want %s", status_message(), reasons[i]);
    }
    put_file(SAFETENSORS_MAX_HEADER_BYTES + 1, "{", 0);
    assert_int_equal(truncate(file, SAFETENSORS_MAX_HEADER_BYTES + 9), 0); /* sparse */
    status_clear();
    check_status(safetensors_open(&f, file), STATUS_DATA);
    assert_non_null(strstr(status_message(), "is over 100000000"));
    assert_int_equal(truncate(file, 7), 0);
    status_clear();
    check_status(safetensors_open(&f, file), STATUS_DATA);
    assert_int_equal(truncate(file, 0), 0);
    status_clear();
    check_status(safetensors_open(&f, file), STATUS_DATA);
    status_clear();
    check_status(safetensors_open(&f, "/nowhere/at/all"), STATUS_NO_INPUT);
    status_clear();
    check_status(safetensors_open(&f, folder), STATUS_NO_INPUT);
}

static void bad_headers(void **state) {
    expect_bad("not JSON", 0, "no JSON");
    expect_bad("[1]", 0, "no JSON object");
    expect_bad("{\"a\":1} x", 0, "no JSON");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
               "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
               12, "overlaps");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
               "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
               8, "overlaps");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
               "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
               12, "hole of 4 bytes");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole of 4 bytes");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
               "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
               8, "duplicate");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", 8, "cut off");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,4]}}", 4, "overflows");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "overflows");
    expect_bad("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype F31");
    expect_bad("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 9, "5 bytes follow");
    expect_bad("{}", 1, "1 bytes follow");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "not a count");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "not a count");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "no shape");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "9 dimensions");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "no range");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "no range");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "data_offsets");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,9223372036854775808]}}", 4, "no JSON");
    expect_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "need 8");
    expect_bad("{\"a\":7}", 0, "unknown dtype");
    expect_bad("{\"__metadata__\":{\"a\":1}}", 0, "no string");
    expect_bad("{\"__metadata__\":[]}", 0, "no object");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(round_trip, make_folder, remove_folder),
    cmocka_unit_test_setup_teardown(halves, make_folder, remove_folder),
    cmocka_unit_test_setup_teardown(rows_of_a_matrix, make_folder, remove_folder),
    cmocka_unit_test_setup_teardown(let_go, make_folder, remove_folder),
    cmocka_unit_test_setup_teardown(integers, make_folder, remove_folder),
    cmocka_unit_test_setup_teardown(duplicate_on_write, make_folder, remove_folder),
    cmocka_unit_test_setup_teardown(odd_but_valid, make_folder, remove_folder),
    cmocka_unit_test_setup_teardown(bad_lengths, make_folder, remove_folder),
    cmocka_unit_test_setup_teardown(bad_headers, make_folder, remove_folder),
};

TEST_MAIN(tests)
