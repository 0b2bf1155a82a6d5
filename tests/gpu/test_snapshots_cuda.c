/* Offloads and saves of the CUDA table, alone and through the snapshot channel to a second rank: what arrives is what
 * the device held at that place of the queue, although it is overwritten right behind; with the queue busy and idle in
 * turns, so that copies are now late and now close behind each other. */
#include "core/rng.h"
#include "dist/dist.h"

#include "comm/channel.h"

enum { PATTERNS = 3, ROWS = 2048, COLS = 4096, COUNT = ROWS * COLS, STEPS = 40, HEAD_BYTES = 136 };

/* Sides of the products that keep the queue busy: small with BULKHEAD_TEST_SMALL set, for a run under compute-sanitizer. */
static int64_t busy_side(void) {
    return getenv("BULKHEAD_TEST_SMALL") ? 256 : 4096;
}

/* The parts leave out COUNT/4 values between them. */
enum { FIRST = COUNT / 4 + 3, GAP = COUNT / 4, REST = COUNT - FIRST - GAP, CARRIED = FIRST + REST };

typedef struct device {
    ops ops;
    float *weights, *pattern[PATTERNS], *square[3];
    float *want[PATTERNS]; /* on the host: what the parts hold */
    offload_part parts[2];
} device;

static bool have_device(void) {
    if (ops_cuda_devices() > 0) return true;
    print_message("skipped: no NVIDIA GPU on this machine\n");
    skip();
    return false;
}

static float *host_pattern(int k) {
    float *x = malloc(COUNT * sizeof *x);
    assert_non_null(x);
    rng_normal(x, 5, (uint64_t)k, 0, COUNT, 1);
    return x;
}

/* The carried values of pattern k in a buffer of their own. */
static float *carried(const float *whole) {
    float *x = malloc(CARRIED * sizeof *x);
    assert_non_null(x);
    memcpy(x, whole, FIRST * sizeof *x);
    memcpy(x + FIRST, whole + FIRST + GAP, REST * sizeof *x);
    return x;
}

static void open_device(device *d) {
    check_status(ops_cuda(&d->ops, 0, true), STATUS_OK);
    ops *o = &d->ops;
    d->weights = o->alloc(o, COUNT * sizeof(float));
    assert_non_null(d->weights);
    for (int k = 0; k < PATTERNS; k++) {
        float *x = host_pattern(k);
        d->pattern[k] = o->alloc(o, COUNT * sizeof(float));
        assert_non_null(d->pattern[k]);
        o->upload(o, d->pattern[k], x, COUNT * sizeof(float));
        o->sync(o);
        d->want[k] = carried(x);
        free(x);
    }
    for (int i = 0; i < 3; i++) {
        d->square[i] = o->alloc(o, (size_t)(busy_side() * busy_side()) * sizeof(float));
        assert_non_null(d->square[i]);
    }
    d->parts[0] = (offload_part){d->weights, FIRST * sizeof(float)};
    d->parts[1] = (offload_part){d->weights + FIRST + GAP, REST * sizeof(float)};
}

static void close_device(device *d) {
    check_status(ops_status(&d->ops), STATUS_OK);
    d->ops.release(&d->ops, d->weights);
    for (int k = 0; k < PATTERNS; k++) {
        d->ops.release(&d->ops, d->pattern[k]);
        free(d->want[k]);
    }
    for (int i = 0; i < 3; i++) d->ops.release(&d->ops, d->square[i]);
    d->ops.close(&d->ops);
}

static tensor matrix(float *data, int64_t rows, int64_t cols) {
    return tensor_make(data, DTYPE_F32, rows, cols);
}

/* A step: milliseconds of work in each second one, then the weights of that step. */
static void update(device *d, int64_t step) {
    ops *o = &d->ops;
    int64_t side = busy_side();
    tensor a = matrix(d->square[0], side, side), b = matrix(d->square[1], side, side),
           y = matrix(d->square[2], side, side);
    for (int i = 0; i < 3 && step % 2 == 0; i++) o->matmul(o, y, a, false, b, false, 0);
    o->copy(o, matrix(d->weights, ROWS, COLS), matrix(d->pattern[step % PATTERNS], ROWS, COLS));
}

static void check_values(const float *got, const float *want, int64_t step) {
    for (int i = 0; i < CARRIED; i++)
        if (got[i] != want[i]) fail_msg("value %d of step %lld is %g, want %g", i, (long long)step, got[i], want[i]);
}

/* One slot's memory is the table's, the others' locked. */
static void offloads_hold_what_was_there(void **state) {
    device d = {0};
    float *host[OFFLOAD_SLOTS];
    if (!have_device() || world_rank() > 0) return;
    open_device(&d);
    ops *o = &d.ops;
    assert_true(o->offload_open(o, CARRIED * sizeof(float)));
    for (int i = 0; i < OFFLOAD_SLOTS; i++) {
        host[i] = i == 0 ? o->host_alloc(o, CARRIED * sizeof(float)) : malloc(CARRIED * sizeof(float));
        assert_non_null(host[i]);
        if (i > 0) assert_true(o->host_lock(o, host[i], CARRIED * sizeof(float)));
    }
    for (int64_t step = 0; step < STEPS + OFFLOAD_SLOTS; step++) {
        int slot = (int)(step % OFFLOAD_SLOTS);
        int64_t before = step - OFFLOAD_SLOTS;
        if (before >= 0) {
            check_status(o->offload_wait(o, slot), STATUS_OK);
            check_values(host[slot], d.want[before % PATTERNS], before);
            memset(host[slot], 0xEE, CARRIED * sizeof(float));
        }
        if (step >= STEPS) continue;
        update(&d, step);
        o->offload(o, slot, host[slot], d.parts, 2);
        o->zero(o, d.weights, COUNT * sizeof(float));
    }
    o->host_release(o, host[0]);
    for (int i = 1; i < OFFLOAD_SLOTS; i++) {
        o->host_unlock(o, host[i]);
        free(host[i]);
    }
    close_device(&d);
}

/* Into page-locked memory and into any other: what is queued behind the fence comes too late to be seen. */
static void saves_hold_what_was_there(void **state) {
    device d = {0};
    if (!have_device() || world_rank() > 0) return;
    open_device(&d);
    ops *o = &d.ops;
    float *host[] = {o->host_alloc(o, CARRIED * sizeof(float)), malloc(CARRIED * sizeof(float))};
    for (int64_t step = 0; step < STEPS; step++) {
        float *to = host[step % 2];
        assert_non_null(to);
        memset(to, 0xEE, CARRIED * sizeof(float));
        update(&d, step);
        o->save(o, to, d.parts, 2);
        o->save_fence(o);
        o->zero(o, d.weights, COUNT * sizeof(float));
        check_status(o->save_wait(o), STATUS_OK);
        check_values(to, d.want[step % PATTERNS], step);
    }
    o->host_release(o, host[0]);
    free(host[1]);
    close_device(&d);
}

static void serve(const comm_roles *r) {
    float *want[PATTERNS];
    for (int k = 0; k < PATTERNS; k++) {
        float *x = host_pattern(k);
        want[k] = carried(x);
        free(x);
    }
    channel_receiver *channel = NULL;
    check_status(channel_receiver_open(&channel, r), STATUS_OK);
    int64_t step = 0;
    for (channel_message m;; step++) {
        check_status(channel_receive(channel, &m), STATUS_OK);
        if (m.kind == CHANNEL_END) break;
        assert_int_equal(m.step, step);
        assert_int_equal(m.bytes, HEAD_BYTES + CARRIED * sizeof(float));
        const unsigned char *head = m.data;
        for (int i = 0; i < HEAD_BYTES; i++) assert_int_equal(head[i], (i + step) % 251);
        check_values((const float *)(const void *)(head + HEAD_BYTES), want[step % PATTERNS], step);
        channel_release(channel, &m);
    }
    assert_int_equal(step, STEPS);
    channel_receiver_close(channel);
    for (int k = 0; k < PATTERNS; k++) free(want[k]);
}

static void train(const comm_roles *r) {
    device d = {0};
    channel_sender *s = NULL;
    open_device(&d);
    check_status(channel_sender_open(&s, r, HEAD_BYTES + CARRIED * sizeof(float), &d.ops), STATUS_OK);
    for (int64_t step = 0; step < STEPS; step++) {
        update(&d, step);
        unsigned char *head = channel_snapshot_buffer(s);
        assert_non_null(head);
        for (int i = 0; i < HEAD_BYTES; i++) head[i] = (unsigned char)((i + step) % 251);
        check_status(channel_snapshot_send(s, step, HEAD_BYTES, d.parts, 2), STATUS_OK);
        d.ops.zero(&d.ops, d.weights, COUNT * sizeof(float));
    }
    check_status(channel_sender_close(s), STATUS_OK);
    close_device(&d);
}

static void snapshots_arrive_as_of_their_step(void **state) {
    comm_roles r;
    if (!have_device()) return;
    check_status(comm_roles_split(&r, 1, 0, 1), STATUS_OK);
    if (r.diagnostics) {
        serve(&r);
    } else {
        train(&r);
    }
    comm_roles_free(&r);
}

static void too_much_memory_is_refused(void **state) {
    const size_t far_too_much = (size_t)1 << 46;
    ops o;
    if (!have_device() || world_rank() > 0) return;
    check_status(ops_cuda(&o, 0, true), STATUS_OK);
    assert_null(o.host_alloc(&o, far_too_much));
    assert_false(o.host_lock(&o, &o, far_too_much));
    assert_false(o.offload_open(&o, far_too_much));
    check_status(ops_status(&o), STATUS_OK); /* and the table goes on */
    float x = 0, y = 3;
    float *one = o.alloc(&o, sizeof x);
    o.upload(&o, one, &y, sizeof y);
    o.download(&o, &x, one, sizeof x);
    check_status(ops_status(&o), STATUS_OK);
    assert_true(x == 3);
    o.release(&o, one);
    o.close(&o);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(offloads_hold_what_was_there),
    cmocka_unit_test(saves_hold_what_was_there),
    cmocka_unit_test(snapshots_arrive_as_of_their_step),
    cmocka_unit_test(too_much_memory_is_refused),
};
DIST_MAIN(tests)
