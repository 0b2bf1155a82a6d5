/* Snapshot messages: whole snapshots come together, and nothing malformed is believed. */
#include "check.h"

#include "comm/snapshot.h"

enum { HEADER_BYTES = 16, STEP = 40 };

/* A message of `count` pieces whose value of element (i, j) is 1000 i + j, in a block of exactly its size. */
static channel_message make(const snapshot_piece *pieces, int count, int sender) {
    channel_message m = {.kind = CHANNEL_SNAPSHOT, .sender = sender, .step = STEP};
    m.bytes = snapshot_message_bytes(pieces, count);
    m.data = malloc(m.bytes);
    assert_non_null(m.data);
    float *v = snapshot_message_begin(m.data, pieces, count);
    for (int p = 0; p < count; p++)
        for (int64_t i = 0; i < pieces[p].n_rows; i++)
            for (int64_t j = 0; j < pieces[p].n_cols; j++)
                *v++ = (float)(1000 * ((double)pieces[p].row + (double)i) + (double)pieces[p].col + (double)j);
    assert_ptr_equal(v, (char *)m.data + m.bytes);
    return m;
}

static void two_ranks_make_one_snapshot(void **state) {
    snapshot_piece first[] = {{"layers.0.attention.W_Q", 6, 5, 0, 0, 4, 5},
                              {"layers.0.attention.W_K", 3, 7, 0, 0, 3, 2}};
    snapshot_piece second[] = {{"layers.0.attention.W_K", 3, 7, 0, 2, 3, 5},
                               {"layers.0.attention.W_Q", 6, 5, 4, 0, 2, 5}};
    channel_message a = make(first, 2, 0), b = make(second, 2, 1);
    snapshot s = {0};
    assert_false(snapshot_whole(&s));
    check_status(snapshot_add(&s, &a), STATUS_OK);
    assert_false(snapshot_whole(&s));
    check_status(snapshot_add(&s, &b), STATUS_OK);
    assert_true(snapshot_whole(&s));
    assert_int_equal(s.step, STEP);
    assert_int_equal(s.senders_seen, 2);
    assert_int_equal(s.count, 2);
    assert_null(snapshot_find(&s, "layers.0.attention.W"));
    const snapshot_tensor *q = snapshot_find(&s, "layers.0.attention.W_Q"),
                          *k = snapshot_find(&s, "layers.0.attention.W_K");
    for (int i = 0; i < 30; i++) check_near(q->data[i], 1000 * (i / 5) + i % 5, 0);
    for (int i = 0; i < 21; i++) check_near(k->data[i], 1000 * (i / 7) + i % 7, 0);
    snapshot_free(&s);
    free(a.data);
    free(b.data);
}

static void a_rank_may_have_nothing_to_say(void **state) {
    snapshot_piece one[] = {{"w", 1, 1, 0, 0, 1, 1}};
    channel_message empty = make(NULL, 0, 1), full = make(one, 1, 0);
    snapshot s = {0};
    check_status(snapshot_add(&s, &empty), STATUS_OK);
    assert_false(snapshot_whole(&s));
    check_status(snapshot_add(&s, &full), STATUS_OK);
    assert_true(snapshot_whole(&s));
    snapshot_free(&s);
    free(empty.data);
    free(full.data);
}

/* Adds `first`, then wants `second` to be refused. */
static void check_conflict(snapshot_piece first, snapshot_piece second, int64_t second_step) {
    channel_message a = make(&first, 1, 0), b = make(&second, 1, 1);
    b.step = second_step;
    snapshot s = {0};
    check_status(snapshot_add(&s, &a), STATUS_OK);
    status_clear();
    check_status(snapshot_add(&s, &b), STATUS_DATA);
    assert_true(strlen(status_message()) > 0);
    snapshot_free(&s);
    free(a.data);
    free(b.data);
}

static void ranks_that_disagree_are_refused(void **state) {
    snapshot_piece half = {"w", 4, 4, 0, 0, 2, 4};
    check_conflict(half, half, STEP);                                    /* the same half twice */
    check_conflict(half, (snapshot_piece){"w", 4, 4, 1, 3, 1, 1}, STEP); /* one element twice */
    check_conflict(half, (snapshot_piece){"w", 4, 5, 2, 0, 2, 5}, STEP); /* another shape */
    check_conflict(half, (snapshot_piece){"w", 8, 2, 4, 0, 4, 2}, STEP);
    check_conflict(half, (snapshot_piece){"w", 4, 4, 2, 0, 2, 4}, STEP + 1);
}

/* Right counts are not enough: an element missing and another twice. */
static void an_element_twice_in_one_message_is_found(void **state) {
    snapshot_piece pieces[] = {{"w", 2, 2, 0, 0, 1, 2}, {"w", 2, 2, 0, 0, 1, 2}};
    channel_message m = make(pieces, 2, 0);
    snapshot s = {0};
    check_status(snapshot_add(&s, &m), STATUS_DATA);
    assert_false(snapshot_whole(&s));
    snapshot_free(&s);
    free(m.data);
}

static void check_bad(const channel_message *m) {
    snapshot s = {0};
    status_clear();
    check_status(snapshot_add(&s, m), STATUS_DATA);
    assert_false(snapshot_whole(&s));
    assert_int_equal(s.senders_seen, 0);
    assert_true(strlen(status_message()) > 0);
    snapshot_free(&s);
}

static void boxes_outside_are_refused(void **state) {
    const int64_t most = INT64_MAX;
    snapshot_piece bad[] = {
        {"w", 4, 4, 3, 0, 2, 4},       {"w", 4, 4, 0, 1, 4, 4},    {"w", 4, 4, -1, 0, 2, 4},
        {"w", 4, 4, 0, -1, 4, 4},      {"w", 4, 4, 0, 0, 0, 4},    {"w", 4, 4, 0, 0, 4, 0},
        {"w", 4, 4, 0, 0, -4, -4},     {"w", 0, 4, 0, 0, 1, 4},    {"w", -4, -4, 0, 0, 1, 1},
        {"w", most, most, 0, 0, 1, 1}, {"w", 4, 4, most, 0, 1, 1}, {"w", 4, 4, most, 0, most, 1},
        {"w", most, 1, 0, 0, 1, 1},    {"", 4, 4, 0, 0, 4, 4},     {"w", 4, 4, 0, 0, most, most},
    };
    snapshot_piece good = {"w", 4, 4, 0, 0, 4, 4};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const snapshot_piece *p = &bad[i];
        bool small = p->n_rows >= 0 && p->n_rows <= 4 && p->n_cols >= 0 && p->n_cols <= 4;
        channel_message m = make(small ? p : &good, 1, 0); /* where possible all lengths are right */
        memcpy((char *)m.data + HEADER_BYTES, p, sizeof *p);
        check_bad(&m);
        free(m.data);
    }
    channel_message m = make(&good, 1, 0); /* a name without an end */
    memset((char *)m.data + HEADER_BYTES, 'w', sizeof good.name);
    check_bad(&m);
    free(m.data);
}

static void every_wrong_length_is_refused(void **state) {
    snapshot_piece pieces[] = {{"a", 3, 3, 0, 0, 3, 3}, {"b", 2, 2, 0, 0, 2, 2}};
    channel_message whole = make(pieces, 2, 0);
    for (size_t bytes = 0; bytes <= whole.bytes + 8; bytes++) {
        if (bytes == whole.bytes) continue;
        channel_message m = whole;
        m.bytes = bytes;
        m.data = calloc(1, bytes > 0 ? bytes : 1); /* of exactly that size, for the sanitizer */
        memcpy(m.data, whole.data, bytes < whole.bytes ? bytes : whole.bytes);
        check_bad(&m);
        free(m.data);
    }
    free(whole.data);
}

static void damaged_headers_are_refused(void **state) {
    snapshot_piece piece = {"w", 2, 2, 0, 0, 2, 2};
    const int64_t counts[] = {-1, 0, 2, 1 << 20, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        channel_message m = make(&piece, 1, 0);
        memcpy((char *)m.data + 8, &counts[i], sizeof counts[i]);
        check_bad(&m);
        free(m.data);
    }
    channel_message m = make(&piece, 1, 0);
    ((char *)m.data)[3] ^= 1;
    check_bad(&m);
    ((char *)m.data)[3] ^= 1;
    m.kind = 3;
    check_bad(&m);
    free(m.data);
}

/* Every single byte of header and table, damaged in eight ways: refused, or at least no crash and no wild write. */
static void no_damaged_byte_does_harm(void **state) {
    snapshot_piece pieces[] = {{"a", 3, 3, 1, 0, 2, 3}, {"b", 2, 2, 0, 1, 2, 1}};
    channel_message m = make(pieces, 2, 0);
    unsigned char *bytes = m.data;
    for (size_t i = 0; i < HEADER_BYTES + sizeof pieces; i++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes[i] ^= (unsigned char)(1 << bit);
            snapshot s = {0};
            status_clear();
            if (snapshot_add(&s, &m) == STATUS_OK) assert_true(s.count > 0);
            snapshot_free(&s);
            bytes[i] ^= (unsigned char)(1 << bit);
        }
    }
    free(m.data);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(two_ranks_make_one_snapshot),     cmocka_unit_test(a_rank_may_have_nothing_to_say),
    cmocka_unit_test(ranks_that_disagree_are_refused), cmocka_unit_test(an_element_twice_in_one_message_is_found),
    cmocka_unit_test(boxes_outside_are_refused),       cmocka_unit_test(every_wrong_length_is_refused),
    cmocka_unit_test(damaged_headers_are_refused),     cmocka_unit_test(no_damaged_byte_does_harm),
};

TEST_MAIN(tests)
