/* The channel over MPI: nothing lost, nothing out of order, and nobody waits who should not. Built for both ways of a
 * snapshot: SHARED, read by the receiver out of its buffer, or not, as messages. */
#include "dist.h"

#include "comm/channel.h"
#include "core/rng.h"

#include <pthread.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 60, SNAPSHOT_EVERY = 5, RECORDS_A_STEP = 3, CREDITS = 2, LARGEST_SNAPSHOT = 9 << 20, GO_TAG = 5 };

/* One diagnostics rank; all others compute. */
static comm_roles split(int diagnostics_ranks) {
    comm_roles r;
    check_status(comm_roles_split(&r, 1, 0, diagnostics_ranks), STATUS_OK);
    return r;
}

static bool no_lock(ops *o, void *host, size_t bytes) {
    return false;
}

static ops *cpu(void) {
    static ops table;
    check_status(ops_cpu(&table, 1), STATUS_OK);
    if (!SHARED) table.host_lock = no_lock;
    return &table;
}

/* Mappings of memory that others can read (comm/message.h). */
static int count_mappings(void) {
    char line[512];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps)) found += strstr(line, "memfd:bulkhead") != NULL;
    fclose(maps);
    return found;
}

/* Of a sender of three large snapshots or more, of which the first has left. */
static void close_sender(channel_sender *s, bool shared) {
    assert_int_equal(count_mappings(), SHARED ? CHANNEL_SNAPSHOT_BUFFERS : 0);
    assert_int_equal(channel_snapshots_shared(s), shared);
    check_status(channel_sender_close(s), STATUS_OK);
    assert_int_equal(count_mappings(), 0);
}

static size_t record_bytes(int sender, int64_t number) {
    uint64_t bits = rng_u64(3, (uint64_t)sender, (uint64_t)number);
    return 8 + (size_t)(bits % 50 == 0 ? bits % 300000 : bits % 700);
}

/* More than two chunks, none of them whole at the end, another size each rank and step. */
static size_t snapshot_bytes(int sender, int64_t step) {
    return LARGEST_SNAPSHOT - 4099 * (size_t)sender - 17 * (size_t)step;
}

static unsigned char pattern(int sender, int64_t step, size_t i) {
    return (unsigned char)(i * 7 + i / 4096 + (size_t)sender * 13 + (size_t)step);
}

static void wait_a_moment(void) {
    usleep(200);
}

/* ---- the compute side ---- */

static void send_snapshot(channel_sender *s, int sender, int64_t step) {
    unsigned char *buffer = channel_snapshot_buffer(s);
    assert_non_null(buffer);
    size_t bytes = snapshot_bytes(sender, step);
    for (size_t i = 0; i < bytes; i++) buffer[i] = pattern(sender, step, i);
    check_status(channel_snapshot_send(s, step, bytes, NULL, 0), STATUS_OK);
}

static void post_records(channel_sender *s, int sender, int64_t step, int64_t *number) {
    for (int i = 0; i < RECORDS_A_STEP; i++, ++*number) {
        size_t bytes = record_bytes(sender, *number);
        char *data = calloc(1, bytes);
        assert_non_null(data);
        memcpy(data, number, sizeof *number);
        check_status(channel_post(s, i, step, data, bytes), STATUS_OK);
        memset(data, 0xEE, bytes); /* a copy was queued */
        free(data);
    }
}

/* A loop like training: all-reduces on the compute ranks' own communicator while the channel's threads send. */
static void train(const comm_roles *r, channel_sender *s) {
    enum { COUNT = 20000 };
    comm_group group;
    check_status(comm_over_mpi(&group, r->compute), STATUS_OK);
    float *gradient = malloc(COUNT * sizeof *gradient);
    assert_non_null(gradient);
    int64_t number = 0;
    for (int64_t step = 1; step <= STEPS; step++) {
        for (int i = 0; i < COUNT; i++) gradient[i] = (float)(step + i % 3);
        comm_all_reduce(&group, gradient, COUNT, DTYPE_F32, COMM_SUM, "gradients", -1);
        check_status(comm_status(&group), STATUS_OK);
        for (int i = 0; i < COUNT; i++) assert_true(gradient[i] == (float)(group.size * (step + i % 3)));
        post_records(s, r->compute_rank, step, &number);
        if (step % SNAPSHOT_EVERY != 0) continue;
        while (r->compute_rank == 0 && !channel_take_credit(s)) wait_a_moment();
        float go = 1;
        comm_all_reduce(&group, &go, 1, DTYPE_F32, COMM_SUM, "agreement", -1); /* all follow rank 0 */
        send_snapshot(s, r->compute_rank, step);
    }
    free(gradient);
    comm_close(&group);
}

/* ---- the diagnostics side ---- */

typedef struct seen {
    int64_t records[8], snapshots[8], last_step[8];
} seen;

static void check_record(const channel_message *m, seen *so_far) {
    int64_t number = -1, want = so_far->records[m->sender]++;
    assert_true(m->bytes >= sizeof number);
    memcpy(&number, m->data, sizeof number);
    assert_int_equal(number, want);
    assert_int_equal(m->kind, want % RECORDS_A_STEP);
    assert_int_equal(m->step, want / RECORDS_A_STEP + 1);
    assert_int_equal(m->bytes, record_bytes(m->sender, number));
}

static void check_pattern(const channel_message *m) {
    const unsigned char *data = m->data;
    for (size_t i = 0; i < m->bytes; i++)
        if (data[i] != pattern(m->sender, m->step, i)) fail_msg("byte %zu of step %lld", i, (long long)m->step);
}

static void check_snapshot(const channel_message *m, seen *so_far) {
    int64_t step = ++so_far->snapshots[m->sender] * SNAPSHOT_EVERY;
    assert_int_equal(m->step, step);
    assert_int_equal(m->bytes, snapshot_bytes(m->sender, step));
    assert_int_equal(so_far->last_step[m->sender], step); /* behind the records of its step */
    check_pattern(m);
}

/* Checks everything until the end, and that no more snapshots come than were granted. */
static void serve(const comm_roles *r, channel_receiver *channel) {
    int senders = r->tp * r->dp, granted = 0, arrived = 0;
    seen so_far = {0};
    for (; granted < CREDITS; granted++) channel_grant(channel);
    for (;;) {
        channel_message m;
        check_status(channel_receive(channel, &m), STATUS_OK);
        if (m.kind == CHANNEL_END) break;
        assert_true(m.sender >= 0 && m.sender < senders);
        if (m.kind == CHANNEL_SNAPSHOT) {
            check_snapshot(&m, &so_far);
            assert_true(arrived / senders < granted);
            if (++arrived % senders == 0) {
                usleep(5000); /* it computes */
                channel_grant(channel);
                granted++;
            }
        } else {
            so_far.last_step[m.sender] = m.step;
            check_record(&m, &so_far);
        }
        channel_release(channel, &m);
    }
    for (int c = 0; c < senders; c++) {
        assert_int_equal(so_far.records[c], STEPS * RECORDS_A_STEP);
        assert_int_equal(so_far.snapshots[c], STEPS / SNAPSHOT_EVERY);
    }
}

static void everything_arrives_under_load(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        serve(&r, channel);
        channel_receiver_close(channel);
    } else {
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, LARGEST_SNAPSHOT, cpu()), STATUS_OK);
        train(&r, s);
        check_status(channel_sender_status(s), STATUS_OK);
        close_sender(s, SHARED);
    }
    comm_roles_free(&r);
}

/* The receiver's caller does not look at the channel before every sender has closed: whoever waited for it would wait
 * for ever. */
static void senders_go_on_while_the_receiver_is_busy(void **state) {
    comm_roles r = split(1);
    int senders = r.tp * r.dp;
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        for (int c = 0; c < senders; c++)
            MPI_Recv(NULL, 0, MPI_BYTE, r.compute_world_ranks[c], GO_TAG, r.world, MPI_STATUS_IGNORE);
        int records = 0, snapshots = 0;
        channel_message m;
        do {
            check_status(channel_receive(channel, &m), STATUS_OK);
            records += m.kind >= 0;
            snapshots += m.kind == CHANNEL_SNAPSHOT;
            channel_release(channel, &m);
        } while (m.kind != CHANNEL_END);
        assert_int_equal(records, 500 * senders);
        assert_int_equal(snapshots, 4 * senders);
        channel_receiver_close(channel);
    } else {
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, LARGEST_SNAPSHOT, cpu()), STATUS_OK);
        for (int i = 0; i < 500; i++) check_status(channel_post(s, 1, i, &i, sizeof i), STATUS_OK);
        for (int64_t step = 1; step <= 4; step++) send_snapshot(s, r.compute_rank, step);
        close_sender(s, SHARED);
        MPI_Send(NULL, 0, MPI_BYTE, r.diagnostics_world_ranks[0], GO_TAG, r.world);
    }
    comm_roles_free(&r);
}

static void credits_are_neither_lost_nor_invented(void **state) {
    enum { GRANTED = 3 };
    comm_roles r = split(1);
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        for (int i = 0; i < GRANTED; i++) channel_grant(channel);
        channel_message m;
        check_status(channel_receive(channel, &m), STATUS_OK);
        assert_int_equal(m.kind, CHANNEL_END);
        channel_grant(channel); /* too late for anybody */
        channel_receiver_close(channel);
    } else {
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, 0, cpu()), STATUS_OK);
        if (r.compute_rank == 0)
            for (int taken = 0; taken < GRANTED; taken += channel_take_credit(s)) wait_a_moment();
        usleep(20000);
        assert_false(channel_take_credit(s));
        check_status(channel_sender_close(s), STATUS_OK);
    }
    comm_roles_free(&r);
}

/* Confirmations reach compute rank 0 in any thread, the last one counts, and credits are not touched by it. */
static void *wait_for_confirmation(void *user) {
    while (channel_confirmed(user) < 40) wait_a_moment();
    return NULL;
}

static void steps_are_confirmed(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        channel_message m;
        check_status(channel_receive(channel, &m), STATUS_OK);
        channel_release(channel, &m);
        channel_grant(channel);
        for (int64_t step = 0; step <= 40; step += 20) channel_confirm(channel, step);
        check_status(channel_receive(channel, &m), STATUS_OK);
        assert_int_equal(m.kind, CHANNEL_END);
        channel_confirm(channel, 60); /* too late for anybody */
        channel_receiver_close(channel);
    } else {
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, 0, cpu()), STATUS_OK);
        assert_int_equal(channel_confirmed(s), -1);
        if (r.compute_rank == 0) {
            pthread_t thread;
            check_status(channel_post(s, 1, 0, "", 0), STATUS_OK);
            assert_int_equal(pthread_create(&thread, NULL, wait_for_confirmation, s), 0);
            while (!channel_take_credit(s)) wait_a_moment();
            pthread_join(thread, NULL);
            assert_int_equal(channel_confirmed(s), 40);
            assert_false(channel_take_credit(s));
        }
        check_status(channel_sender_close(s), STATUS_OK);
    }
    comm_roles_free(&r);
}

/* A diagnostics rank that gives up goes on taking, and training does not notice. */
static void a_receiver_that_gives_up_holds_nobody_back(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        channel_grant(channel);
        channel_message m;
        check_status(channel_receive(channel, &m), STATUS_OK);
        channel_release(channel, &m);
        channel_receiver_close(channel);
    } else {
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, LARGEST_SNAPSHOT, cpu()), STATUS_OK);
        int64_t number = 0;
        for (int64_t step = 1; step <= 6; step++) {
            post_records(s, r.compute_rank, step, &number);
            send_snapshot(s, r.compute_rank, step);
        }
        close_sender(s, SHARED);
    }
    comm_roles_free(&r);
}

enum { MOST_DESCRIPTORS = 256 };

/* From now on this process opens nothing more; *count of these are to be closed. */
static void take_all_descriptors(int taken[MOST_DESCRIPTORS], int *count) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = MOST_DESCRIPTORS;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (*count = 0; (taken[*count] = dup(1)) >= 0; ++*count) continue;
}

/* As on another host: the receiver finds no memory to read, and gets messages. */
static void a_receiver_that_cannot_read_gets_messages(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        int taken[MOST_DESCRIPTORS], count, arrived = 0;
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        take_all_descriptors(taken, &count);
        for (int c = 0; c < r.tp * r.dp; c++) MPI_Send(NULL, 0, MPI_BYTE, r.compute_world_ranks[c], GO_TAG, r.world);
        for (channel_message m;; arrived++) {
            check_status(channel_receive(channel, &m), STATUS_OK);
            if (m.kind == CHANNEL_END) break;
            check_pattern(&m);
            channel_release(channel, &m);
        }
        assert_int_equal(arrived, 4 * r.tp * r.dp);
        while (count > 0) close(taken[--count]);
        channel_receiver_close(channel);
    } else {
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, LARGEST_SNAPSHOT, cpu()), STATUS_OK);
        MPI_Recv(NULL, 0, MPI_BYTE, r.diagnostics_world_ranks[0], GO_TAG, r.world, MPI_STATUS_IGNORE);
        for (int64_t step = 1; step <= 4; step++) send_snapshot(s, r.compute_rank, step);
        close_sender(s, false);
    }
    comm_roles_free(&r);
}

/* ---- several diagnostics ranks ---- */

enum { SPLIT_STEPS = 5, WRITTEN_BYTES = 100, SPLIT_BYTES = 6 << 20 };

/* Of one diagnostics rank: what is written, and more than a chunk of what is copied; the second gets other amounts. */
static channel_share share_of(int i) {
    return (channel_share){.written_bytes = WRITTEN_BYTES + (size_t)i, .part_bytes = (5 << 20) - 77777 * (size_t)i};
}

/* The end of a message is known by where it lies among the parts of all. */
static unsigned char split_pattern(int sender, int64_t step, int share, size_t i) {
    return pattern(sender, step, i + 1000003 * (size_t)share);
}

static void send_split(channel_sender *s, const comm_roles *r, char *device, int64_t step) {
    unsigned char *written = channel_snapshot_buffer(s), *first = written, *part = (unsigned char *)device;
    assert_non_null(written);
    for (int share = 0; share < r->diagnostics_ranks; share++) {
        channel_share size = share_of(share);
        for (size_t i = 0; i < size.written_bytes; i++) *written++ = split_pattern(r->compute_rank, step, share, i);
        for (size_t i = 0; i < size.part_bytes; i++)
            *part++ = split_pattern(r->compute_rank, step, share, size.written_bytes + i);
    }
    const offload_part parts = {device, (size_t)((char *)part - device)};
    check_status(channel_snapshot_send(s, step, (size_t)(written - first), &parts, 1), STATUS_OK);
}

static void check_split(const channel_message *m, int share) {
    channel_share size = share_of(share);
    const unsigned char *data = m->data;
    assert_int_equal(m->bytes, size.written_bytes + size.part_bytes);
    for (size_t i = 0; i < m->bytes; i++)
        if (data[i] != split_pattern(m->sender, m->step, share, i))
            fail_msg("byte %zu of step %lld", i, (long long)m->step);
}

/* Takes all until the end. A further rank answers each snapshot with a record to the first one, which sees its end. */
static void serve_split(const comm_roles *r) {
    int computes = r->tp * r->dp, records = 0, relayed = 0, snapshots = 0;
    channel_receiver *channel = NULL;
    channel_sender *relay = NULL;
    check_status(channel_receiver_open(&channel, r), STATUS_OK);
    if (r->diagnostics_rank > 0) check_status(channel_relay_open(&relay, r), STATUS_OK);
    channel_message m;
    do {
        check_status(channel_receive(channel, &m), STATUS_OK);
        if (m.kind == CHANNEL_SNAPSHOT) {
            check_split(&m, r->diagnostics_rank);
            snapshots++;
            if (relay) check_status(channel_post(relay, 3, m.step, &m.sender, sizeof m.sender), STATUS_OK);
        } else if (m.kind == 3) {
            assert_int_equal(m.sender, computes); /* behind the compute ranks */
            relayed++;
        } else if (m.kind >= 0) {
            records++;
        }
        channel_release(channel, &m);
    } while (m.kind != CHANNEL_END);
    assert_int_equal(snapshots, SPLIT_STEPS * computes);
    assert_int_equal(records, relay ? 0 : 10 * computes);
    assert_int_equal(relayed, relay ? 0 : (r->diagnostics_ranks - 1) * SPLIT_STEPS * computes);
    if (relay) check_status(channel_sender_close(relay), STATUS_OK);
    channel_receiver_close(channel);
}

/* Each gets its share of a snapshot; records go to the first, from compute ranks and from the others; the end to all.
 */
static void diagnostics_ranks_share_snapshots(void **state) {
    comm_roles r = split(world_size() > 2 ? 2 : 1);
    if (r.diagnostics) {
        serve_split(&r);
    } else {
        const channel_share shares[] = {share_of(0), share_of(1)};
        char *device = malloc(2 * SPLIT_BYTES);
        assert_non_null(device);
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, 2 * SPLIT_BYTES, cpu()), STATUS_OK);
        channel_snapshot_split(s, shares);
        for (int i = 0; i < 10; i++) check_status(channel_post(s, 0, i, &i, sizeof i), STATUS_OK);
        for (int64_t step = 1; step <= SPLIT_STEPS; step++) send_split(s, &r, device, step);
        close_sender(s, SHARED);
        free(device);
    }
    comm_roles_free(&r);
}

/* ---- a device whose offloads arrive late ---- */

/* What each slot's offload took, and where it is to arrive: it does when somebody waits for it, no sooner. */
static struct {
    char *taken;
    void *host;
    size_t bytes;
} late_slots[OFFLOAD_SLOTS];

static void late_offload(ops *o, int slot, void *host, const offload_part *parts, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].bytes;
    char *taken = malloc(bytes);
    assert_non_null(taken);
    late_slots[slot].taken = taken;
    late_slots[slot].host = host;
    late_slots[slot].bytes = bytes;
    for (int i = 0; i < count; i++) {
        memcpy(taken, parts[i].device, parts[i].bytes);
        taken += parts[i].bytes;
    }
}

static status late_wait(ops *o, int slot) {
    memcpy(late_slots[slot].host, late_slots[slot].taken, late_slots[slot].bytes);
    free(late_slots[slot].taken);
    return STATUS_OK;
}

static status failing_wait(ops *o, int slot) {
    late_wait(o, slot);
    return status_fail(STATUS_INTERNAL, "the device is lost");
}

static bool no_room(ops *o, size_t bytes) {
    return false;
}

static void *no_host_memory(ops *o, size_t bytes) {
    return NULL;
}

enum { HEAD_BYTES = 100, FIRST_BYTES = 5000, LATE_BYTES = 5 << 20, LATE_STEPS = 20 };

static void send_late(channel_sender *s, unsigned char *device, int sender, int64_t step) {
    unsigned char *buffer = channel_snapshot_buffer(s);
    assert_non_null(buffer);
    for (size_t i = 0; i < HEAD_BYTES; i++) buffer[i] = pattern(sender, step, i);
    for (size_t i = HEAD_BYTES; i < LATE_BYTES; i++) device[i] = pattern(sender, step, i);
    const offload_part parts[] = {{device + HEAD_BYTES, FIRST_BYTES},
                                  {device + HEAD_BYTES + FIRST_BYTES, LATE_BYTES - HEAD_BYTES - FIRST_BYTES}};
    check_status(channel_snapshot_send(s, step, HEAD_BYTES, parts, 2), STATUS_OK);
    memset(device, 0xEE, LATE_BYTES); /* the next step has begun */
}

/* The thread waits for the copy, and what it sends is of that step. */
static void a_snapshot_is_sent_when_its_copy_has_arrived(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        int64_t arrived = 0;
        for (channel_message m;;) {
            check_status(channel_receive(channel, &m), STATUS_OK);
            if (m.kind == CHANNEL_END) break;
            assert_int_equal(m.bytes, LATE_BYTES);
            check_pattern(&m);
            channel_release(channel, &m);
            arrived++;
        }
        assert_int_equal(arrived, LATE_STEPS * r.tp * r.dp);
        channel_receiver_close(channel);
    } else {
        ops late = *cpu();
        late.offload = late_offload;
        late.offload_wait = late_wait;
        unsigned char *device = malloc(LATE_BYTES);
        assert_non_null(device);
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, LATE_BYTES, &late), STATUS_OK);
        for (int64_t step = 1; step <= LATE_STEPS; step++) send_late(s, device, r.compute_rank, step);
        close_sender(s, SHARED);
        free(device);
    }
    comm_roles_free(&r);
}

static bool held_back; /* atomic: copies do not arrive */

static status held_wait(ops *o, int slot) {
    while (__atomic_load_n(&held_back, __ATOMIC_ACQUIRE)) wait_a_moment();
    return late_wait(o, slot);
}

/* A credit is not worth a wait for a buffer. */
static void a_credit_waits_for_a_buffer(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        for (int i = 0; i <= CHANNEL_SNAPSHOT_BUFFERS; i++) channel_grant(channel);
        for (channel_message m;;) {
            check_status(channel_receive(channel, &m), STATUS_OK);
            if (m.kind == CHANNEL_END) break;
            channel_release(channel, &m);
        }
        channel_receiver_close(channel);
    } else {
        ops late = *cpu();
        late.offload = late_offload;
        late.offload_wait = held_wait;
        unsigned char *device = malloc(LATE_BYTES);
        assert_non_null(device);
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, LATE_BYTES, &late), STATUS_OK);
        __atomic_store_n(&held_back, true, __ATOMIC_RELEASE);
        for (int64_t step = 1; step <= CHANNEL_SNAPSHOT_BUFFERS; step++) {
            while (r.compute_rank == 0 && !channel_take_credit(s)) wait_a_moment();
            send_late(s, device, r.compute_rank, step);
        }
        usleep(20000); /* the last credit has come */
        assert_false(channel_take_credit(s));
        __atomic_store_n(&held_back, false, __ATOMIC_RELEASE);
        while (r.compute_rank == 0 && !channel_take_credit(s)) wait_a_moment();
        check_status(channel_sender_close(s), STATUS_OK);
        free(device);
    }
    comm_roles_free(&r);
}

/* The sender says so when the copy fails, or when there is no memory for it, and the receiver is not kept waiting. */
static void a_device_that_fails_ends_the_snapshots(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        for (int c = 0; c < r.tp * r.dp; c++)
            MPI_Recv(NULL, 0, MPI_BYTE, r.compute_world_ranks[c], GO_TAG, r.world, MPI_STATUS_IGNORE);
        channel_receiver_abandon(channel);
    } else {
        channel_sender *s = NULL;
        ops failing = *cpu();
        failing.host_lock = no_lock;
        failing.host_alloc = no_host_memory;
        check_status(channel_sender_open(&s, &r, LATE_BYTES, &failing), STATUS_CONFIG);
        assert_null(s);
        assert_non_null(strstr(status_message(), "3 snapshot buffers of 5.0 MiB of host memory cannot be had"));
        status_clear();
        failing = *cpu();
        failing.offload_open = no_room;
        check_status(channel_sender_open(&s, &r, LATE_BYTES, &failing), STATUS_CONFIG);
        assert_null(s);
        assert_non_null(strstr(status_message(), "5.0 MiB for snapshots cannot be had on the cpu"));
        status_clear();
        failing = *cpu();
        failing.offload = late_offload;
        failing.offload_wait = failing_wait;
        unsigned char *device = malloc(LATE_BYTES);
        assert_non_null(device);
        check_status(channel_sender_open(&s, &r, LATE_BYTES, &failing), STATUS_OK);
        send_late(s, device, r.compute_rank, 1);
        while (channel_sender_status(s) == STATUS_OK) wait_a_moment();
        assert_non_null(strstr(status_message(), "the device is lost"));
        assert_int_equal(channel_sender_close(s), STATUS_INTERNAL);
        MPI_Send(NULL, 0, MPI_BYTE, r.diagnostics_world_ranks[0], GO_TAG, r.world);
        free(device);
        status_clear();
    }
    comm_roles_free(&r);
}

/* A rank that could not open its end ends the job for all, without waiting for anybody. */
static void abandoned_ends_wait_for_nobody(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        channel_receiver_abandon(channel);
    } else if (r.compute_rank == 0) {
        channel_sender *s = NULL;
        check_status(channel_sender_open(&s, &r, 1 << 20, cpu()), STATUS_OK);
        channel_sender_abandon(s);
    }
    comm_roles_free(&r);
}

/* A diagnostics process that is stopped takes nothing: senders give up after their patience, and say so. */
static void a_stopped_receiver_is_given_up(void **state) {
    comm_roles r = split(1);
    if (r.diagnostics) {
        for (int c = 0; c < r.tp * r.dp; c++)
            MPI_Recv(NULL, 0, MPI_BYTE, r.compute_world_ranks[c], GO_TAG, r.world, MPI_STATUS_IGNORE);
    } else {
        channel_sender *s = NULL;
        r.patience_s = 1.5;
        check_status(channel_sender_open(&s, &r, LARGEST_SNAPSHOT, cpu()), STATUS_OK);
        for (int64_t step = 1; step <= CHANNEL_SNAPSHOT_BUFFERS; step++) send_snapshot(s, r.compute_rank, step);
        assert_null(channel_snapshot_buffer(s)); /* waits for the first to leave, which it never does */
        check_status(channel_sender_status(s), STATUS_INTERNAL);
        assert_non_null(strstr(status_message(), "is that process stopped?"));
        assert_int_equal(channel_post(s, 0, CHANNEL_SNAPSHOT_BUFFERS + 1, NULL, 0), STATUS_INTERNAL);
        check_status(channel_sender_close(s), STATUS_INTERNAL);
        MPI_Send(NULL, 0, MPI_BYTE, r.diagnostics_world_ranks[0], GO_TAG, r.world);
        status_clear();
    }
    if (r.diagnostics) { /* so that MPI ends without unfinished sends: takes the header, and the first chunk */
        channel_receiver *channel = NULL;
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        usleep(100000);
        channel_receiver_abandon(channel);
    }
    comm_roles_free(&r);
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Open MPI's own waits would take a whole core. */
static void an_idle_channel_sleeps(void **state) {
    comm_roles r = split(1);
    channel_receiver *channel = NULL;
    channel_sender *s = NULL;
    if (r.diagnostics) {
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
    } else {
        check_status(channel_sender_open(&s, &r, 1 << 20, cpu()), STATUS_OK);
    }
    double before = cpu_seconds();
    usleep(1000000);
    double used = cpu_seconds() - before;
    print_message("%s used %.1f ms of a second\n", r.diagnostics ? "receiver" : "sender", 1000 * used);
    if (used > 0.1) fail_msg("used %.3f s of a second", used);
    if (s) check_status(channel_sender_close(s), STATUS_OK);
    if (channel) channel_receiver_close(channel);
    comm_roles_free(&r);
}

static void misuse_is_refused(void **state) {
    comm_roles r = split(1);
    channel_receiver *channel = NULL;
    channel_sender *s = NULL;
    if (r.diagnostics) {
        check_status(channel_sender_open(&s, &r, 0, cpu()), STATUS_INTERNAL);
        assert_null(s);
        check_status(channel_receiver_open(&channel, &r), STATUS_OK);
        channel_receiver_close(channel);
    } else {
        check_status(channel_receiver_open(&channel, &r), STATUS_INTERNAL);
        assert_null(channel);
        check_status(channel_sender_open(&s, &r, 100, cpu()), STATUS_OK);
        check_status(channel_snapshot_send(s, 1, 10, NULL, 0), STATUS_INTERNAL); /* no buffer was taken */
        void *buffer = channel_snapshot_buffer(s);
        assert_non_null(buffer);
        assert_ptr_equal(channel_snapshot_buffer(s), buffer); /* still the one got last */
        check_status(channel_snapshot_send(s, 1, 101, NULL, 0), STATUS_INTERNAL);
        offload_part part = {buffer, 51};
        check_status(channel_snapshot_send(s, 1, 50, &part, 1), STATUS_INTERNAL);
        check_status(channel_post(s, CHANNEL_SNAPSHOT, 1, NULL, 0), STATUS_INTERNAL);
        check_status(channel_sender_close(s), STATUS_OK); /* with a buffer in the caller's hands */
    }
    status_clear();
    comm_roles_free(&r);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(everything_arrives_under_load),
    cmocka_unit_test(senders_go_on_while_the_receiver_is_busy),
    cmocka_unit_test(credits_are_neither_lost_nor_invented),
    cmocka_unit_test(steps_are_confirmed),
    cmocka_unit_test(a_snapshot_is_sent_when_its_copy_has_arrived),
    cmocka_unit_test(a_credit_waits_for_a_buffer),
    cmocka_unit_test(a_device_that_fails_ends_the_snapshots),
    cmocka_unit_test(a_receiver_that_gives_up_holds_nobody_back),
    cmocka_unit_test(a_receiver_that_cannot_read_gets_messages),
    cmocka_unit_test(diagnostics_ranks_share_snapshots),
    cmocka_unit_test(abandoned_ends_wait_for_nobody),
    cmocka_unit_test(a_stopped_receiver_is_given_up),
    cmocka_unit_test(an_idle_channel_sleeps),
    cmocka_unit_test(misuse_is_refused),
};

DIST_MAIN(tests)
