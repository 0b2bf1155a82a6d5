/* The channel between threads of one process. */
#include "check.h"

#include "comm/channel.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

enum { MANY = 20000 };

typedef struct record {
    int64_t number;
    char filling[40];
} record;

/* Posts MANY records of lengths that vary, then closes. */
static void *post_many(void *user) {
    channel_sender *s = user;
    status result = STATUS_OK;
    for (int64_t i = 0; i < MANY && result == STATUS_OK; i++) {
        record r = {.number = i};
        result = channel_post(s, (int)(i % 5), i, &r, sizeof r.number + (size_t)(i % 41));
        r.number = -1; /* a copy was queued */
    }
    status closed = channel_sender_close(s);
    return (void *)(intptr_t)(result != STATUS_OK ? result : closed);
}

static void every_record_arrives_once_in_order(void **state) {
    channel_sender *s = NULL;
    channel_receiver *r = NULL;
    check_status(channel_local_open(&s, &r), STATUS_OK);
    pthread_t sender;
    pthread_create(&sender, NULL, post_many, s);
    channel_message m;
    for (int64_t i = 0; i < MANY; i++) {
        check_status(channel_receive(r, &m), STATUS_OK);
        assert_int_equal(m.kind, i % 5);
        assert_int_equal(m.step, i);
        assert_int_equal(m.sender, 0);
        assert_int_equal(m.bytes, sizeof(int64_t) + (size_t)(i % 41));
        int64_t number = -1;
        memcpy(&number, m.data, sizeof number);
        assert_int_equal(number, i);
        channel_release(r, &m);
    }
    check_status(channel_receive(r, &m), STATUS_OK);
    assert_int_equal(m.kind, CHANNEL_END);
    void *result = NULL;
    pthread_join(sender, &result);
    assert_int_equal((intptr_t)result, STATUS_OK);
    channel_receiver_close(r);
}

static void steps_are_confirmed(void **state) {
    channel_sender *s = NULL;
    channel_receiver *r = NULL;
    check_status(channel_local_open(&s, &r), STATUS_OK);
    assert_int_equal(channel_confirmed(s), -1);
    channel_confirm(r, 0);
    assert_int_equal(channel_confirmed(s), 0);
    channel_confirm(r, 30);
    assert_int_equal(channel_confirmed(s), 30);
    check_status(channel_sender_close(s), STATUS_OK);
    channel_receiver_close(r);
}

static void *receive_one(void *user) {
    channel_message m;
    if (channel_receive(user, &m) != STATUS_OK || m.kind != 7) return NULL;
    char *text = strdup(m.data);
    channel_release(user, &m);
    return text;
}

static void a_receiver_waits_for_a_record(void **state) {
    channel_sender *s = NULL;
    channel_receiver *r = NULL;
    check_status(channel_local_open(&s, &r), STATUS_OK);
    pthread_t receiver;
    pthread_create(&receiver, NULL, receive_one, r);
    usleep(20000);
    check_status(channel_post(s, 7, 1, "loss", 5), STATUS_OK);
    void *text = NULL;
    pthread_join(receiver, &text);
    assert_non_null(text);
    assert_string_equal(text, "loss");
    free(text);
    check_status(channel_sender_close(s), STATUS_OK);
    channel_receiver_close(r);
}

static void an_empty_record_is_a_record(void **state) {
    channel_sender *s = NULL;
    channel_receiver *r = NULL;
    check_status(channel_local_open(&s, &r), STATUS_OK);
    check_status(channel_post(s, 2, 9, NULL, 0), STATUS_OK);
    check_status(channel_sender_close(s), STATUS_OK);
    channel_message m;
    check_status(channel_receive(r, &m), STATUS_OK);
    assert_int_equal(m.kind, 2);
    assert_int_equal(m.bytes, 0);
    channel_release(r, &m);
    check_status(channel_receive(r, &m), STATUS_OK);
    assert_int_equal(m.kind, CHANNEL_END);
    channel_receiver_close(r);
}

/* A receiver that gives up must not leave the training loop waiting or its records leaking. */
static void a_closed_receiver_fails_the_sender(void **state) {
    channel_sender *s = NULL;
    channel_receiver *r = NULL;
    check_status(channel_local_open(&s, &r), STATUS_OK);
    check_status(channel_post(s, 1, 1, "a", 1), STATUS_OK);
    channel_receiver_close(r);
    check_status(channel_sender_status(s), STATUS_INTERNAL);
    check_status(channel_post(s, 1, 2, "b", 1), STATUS_INTERNAL);
    check_status(channel_sender_close(s), STATUS_INTERNAL);
    assert_true(strlen(status_message()) > 0);
}

static void a_receiver_may_close_with_records_waiting(void **state) {
    channel_sender *s = NULL;
    channel_receiver *r = NULL;
    check_status(channel_local_open(&s, &r), STATUS_OK);
    for (int i = 0; i < 10; i++) check_status(channel_post(s, 1, i, "abc", 4), STATUS_OK);
    check_status(channel_sender_close(s), STATUS_OK);
    channel_receiver_close(r);
}

static void misuse_is_refused(void **state) {
    channel_sender *s = NULL;
    channel_receiver *r = NULL;
    check_status(channel_local_open(&s, &r), STATUS_OK);
    check_status(channel_post(s, CHANNEL_END, 0, NULL, 0), STATUS_INTERNAL);
    assert_false(channel_take_credit(s));
    assert_null(channel_snapshot_buffer(s));
    check_status(channel_snapshot_send(s, 1, 0, NULL, 0), STATUS_INTERNAL);
    channel_grant(r);
    check_status(channel_sender_close(s), STATUS_OK);
    channel_receiver_close(r);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_record_arrives_once_in_order),
    cmocka_unit_test(steps_are_confirmed),
    cmocka_unit_test(a_receiver_waits_for_a_record),
    cmocka_unit_test(an_empty_record_is_a_record),
    cmocka_unit_test(a_closed_receiver_fails_the_sender),
    cmocka_unit_test(a_receiver_may_close_with_records_waiting),
    cmocka_unit_test(misuse_is_refused),
};

TEST_MAIN(tests)
