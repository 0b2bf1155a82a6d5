/* Records on their way to the database, in transactions of some at a time, so that much that waits is not all or
 * nothing. A failure that may pass (locked, disk full, I/O) undoes one transaction and keeps its records; a record that
 * the database will never take is dropped, logged and counted. */
#include "core/log.h"
#include "diag/database.h"
#include "diag/store_private.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PART_RECORDS = 256 }; /* at most, in a transaction; not one more when they are of */
static const size_t PART_BYTES = (size_t)4 << 20, MOST_WAITING_BYTES = (size_t)256 << 20;

static void free_rows(waiting *w) {
    if (w->record.kind == STORE_GAINS) free(w->record.gains.gain);
    if (w->record.kind != STORE_SNAPSHOT) return;
    free(w->record.snapshot.rows);
    free(w->record.snapshot.values);
    free(w->record.snapshot.pairs);
    w->record.snapshot.rows = NULL;
    w->record.snapshot.values = NULL;
    w->record.snapshot.pairs = NULL;
}

/* The oldest snapshot that waits goes without its spectra, and is recorded as failed. False when none has any. */
static bool lose_spectra(store *s) {
    waiting *w = s->first;
    while (w && (w->record.kind != STORE_SNAPSHOT || !w->record.snapshot.rows)) w = w->next;
    if (!w) return false;
    free_rows(w);
    w->record.snapshot.status = "failed";
    s->waiting_bytes -= w->bytes;
    w->bytes = 0;
    s->lost++;
    return true;
}

static size_t rows_bytes(const store *s, const store_snapshot *r) {
    size_t bytes = 0;
    if (r->rows) bytes += (size_t)s->matrix_count * sizeof(spectrum);
    if (s->matrix_count == 0) return bytes;
    const maps_matrix *last = &s->matrices[s->matrix_count - 1];
    if (r->values) bytes += (size_t)(last->first_value + last->rank) * sizeof(double);
    if (r->pairs) bytes += (size_t)(last->first_pair + last->left + last->right) * sizeof(float);
    return bytes;
}

void store_add(store *s, const store_record *record) {
    waiting *w = calloc(1, sizeof(*w));
    if (!w) {
        log_error("out of memory: a record for the database is lost");
        s->lost++;
        return;
    }
    w->record = *record;
    w->message = s->message;
    store_now(w->time, sizeof(w->time));
    if (record->kind == STORE_EVENT) w->number = ++s->events;
    if (record->kind == STORE_SNAPSHOT) w->bytes = rows_bytes(s, &record->snapshot);
    if (record->kind == STORE_FINISH) s->ended = true;
    if (record->kind == STORE_STEP) {
        if (s->first_step < 0) s->first_step = record->step.step;
        s->last_step = record->step.step;
    }
    *s->last = w;
    s->last = &w->next;
    s->waiting_count++;
    s->waiting_bytes += w->bytes;
    /* A database that stays away must not cost all memory. */
    while (s->waiting_bytes > MOST_WAITING_BYTES && lose_spectra(s)) continue;
}

void store_set_message(store *s, int64_t number) {
    if (number > s->message) s->message = number; /* what a worker gets again comes with its old number */
}

int64_t store_messages(const store *s) {
    return s->messages;
}

void store_event(store *s, int64_t step, const char *level, const char *kind, const char *format, ...) {
    store_record r = {.kind = STORE_EVENT, .event = {.step = step}};
    va_list args;
    va_start(args, format);
    vsnprintf(r.event.message, sizeof(r.event.message), format, args);
    va_end(args);
    snprintf(r.event.level, sizeof(r.event.level), "%s", level);
    snprintf(r.event.kind, sizeof(r.event.kind), "%s", kind);
    store_add(s, &r);
}

/* Forgets the first records, up to `end`. */
static void forget(store *s, const waiting *end) {
    while (s->first != end) {
        waiting *w = s->first;
        s->first = w->next;
        s->waiting_count--;
        s->waiting_bytes -= w->bytes;
        free_rows(w);
        free(w);
    }
    if (!s->first) s->last = &s->first;
}

void store_forget(store *s) {
    forget(s, NULL);
}

/* ---- writing ---- */

/* Records that go in one transaction. */
typedef struct part {
    waiting *end; /* the first one behind it */
    int tried, refused;
    size_t bytes;
    int64_t last_step; /* of its training steps; -1: none */
    int64_t messages;  /* of which all records are written with it, or were before */
} part;

/* One record, as a whole or not at all. */
static int write_whole(store *s, const waiting *w) {
    int rc = sqlite3_exec(s->db, "SAVEPOINT record", NULL, NULL, NULL);
    if (rc == SQLITE_OK) rc = store_write_record(s, w);
    if (rc == SQLITE_OK) return sqlite3_exec(s->db, "RELEASE record", NULL, NULL, NULL);
    if (!database_error_passes(rc)) {
        log_error("%s refuses a record, which is lost: %s", s->path, sqlite3_errmsg(s->db));
        sqlite3_exec(s->db, "ROLLBACK TO record; RELEASE record", NULL, NULL, NULL);
    }
    return rc;
}

static int write_records(store *s, part *p, int most) {
    for (waiting *w = s->first; w && p->tried < most && p->bytes < PART_BYTES; w = w->next) {
        p->tried++;
        int rc = write_whole(s, w);
        if (rc != SQLITE_OK && database_error_passes(rc)) return rc;
        p->refused += rc != SQLITE_OK;
        p->bytes += w->bytes;
        p->end = w->next;
        if (w->record.kind == STORE_STEP) p->last_step = w->record.step.step;
    }
    p->messages = p->end ? p->end->message - 1 : s->message;
    return store_write_progress(s, p->last_step < 0 ? s->written_step : p->last_step, p->messages);
}

/* The first `most` records in one transaction, or fewer that are large. After a failure, whose text is put into why,
 * nothing of it is written. */
static int write_part(store *s, part *p, int most, char *why, size_t size) {
    *p = (part){.last_step = -1};
    int rc = sqlite3_exec(s->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc == SQLITE_OK) rc = write_records(s, p, most);
    if (rc == SQLITE_OK) rc = sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
    if (rc == SQLITE_OK) return rc;
    snprintf(why, size, "%s", sqlite3_errmsg(s->db));
    sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

/* The first failure in a row leaves an event; the others are counted. */
static status note_failure(store *s, const char *why) {
    if (s->failures++ == 0) {
        log_warn("%s could not be written (%s); %d records wait for the next attempt", s->path, why, s->waiting_count);
        store_event(s, s->last_step, "warn", "fault",
                    "the database could not be written: %s; records were kept and written later", why);
    }
    return status_fail(STATUS_IO, "%s could not be written: %s", s->path, why);
}

static void note_success(store *s) {
    if (s->failures > 0) log_info("%s takes records again after %lld failed attempts", s->path, (long long)s->failures);
    s->failures = 0;
}

static bool is_lock(int rc) {
    return (rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_LOCKED;
}

/* The log's content into the file, so that the log begins again: room where the disk has none. */
static bool empty_log(store *s) {
    return s->wal && sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) == SQLITE_OK;
}

/* Where all do not fit on the disk, some may; a lock would only be waited for again. */
status store_flush(store *s) {
    char why[200];
    part p;
    bool emptied = false;
    for (int most = PART_RECORDS; s->first;) {
        int rc = write_part(s, &p, most, why, sizeof(why));
        if (rc == SQLITE_OK) {
            s->lost += p.refused;
            s->messages = p.messages;
            if (p.last_step >= 0) s->written_step = p.last_step;
            forget(s, p.end);
        } else if (p.tried > 1 && !is_lock(rc)) {
            most = p.tried / 2;
        } else if (!emptied && !is_lock(rc) && empty_log(s)) {
            emptied = true;
        } else {
            s->last_error = rc;
            return note_failure(s, why);
        }
    }
    note_success(s);
    return STATUS_OK;
}

status store_flush_last(store *s) {
    status result = store_flush(s);
    while (result != STATUS_OK && !is_lock(s->last_error) && lose_spectra(s)) {
        status_clear();
        result = store_flush(s);
    }
    return result;
}

void store_make_durable(store *s) {
    if (s->wal) sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
}

bool store_is_cheap(const store *s) {
    return s->wal;
}
int store_waiting(const store *s) {
    return s->waiting_count;
}
