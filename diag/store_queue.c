/* Records on their way to the database. A transient failure (locked, disk full, I/O) rolls the transaction back and
 * keeps them; a record that the database will never take is dropped, logged and counted. */
#include "core/log.h"
#include "diag/database.h"
#include "diag/store_private.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t MOST_WAITING_BYTES = (size_t)256 << 20;

static void free_rows(waiting *w) {
    if (w->record.kind != STORE_SNAPSHOT) return;
    free(w->record.snapshot.rows);
    free(w->record.snapshot.values);
    w->record.snapshot.rows = NULL;
    w->record.snapshot.values = NULL;
}

/* A database that stays away must not cost all memory: the oldest spectra go, their snapshots are recorded as failed.
 */
static void bound_memory(store *s) {
    for (waiting *w = s->first; w && s->waiting_bytes > MOST_WAITING_BYTES; w = w->next) {
        if (w->record.kind != STORE_SNAPSHOT || !w->record.snapshot.rows) continue;
        free_rows(w);
        w->record.snapshot.status = "failed";
        s->waiting_bytes -= w->bytes;
        w->bytes = 0;
        s->lost++;
    }
}

static size_t rows_bytes(const store *s, const store_snapshot *r) {
    size_t bytes = 0;
    if (r->rows) bytes += (size_t)s->matrix_count * sizeof(spectrum);
    if (r->values && s->matrix_count > 0) {
        const maps_matrix *last = &s->matrices[s->matrix_count - 1];
        bytes += (size_t)(last->first_value + last->rank) * sizeof(double);
    }
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
    bound_memory(s);
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

void store_forget(store *s) {
    while (s->first) {
        waiting *next = s->first->next;
        free_rows(s->first);
        free(s->first);
        s->first = next;
    }
    s->last = &s->first;
    s->waiting_count = 0;
    s->waiting_bytes = 0;
}

/* The first failure in a row leaves an event; the others are counted. */
static status note_failure(store *s, int rc) {
    char why[200];
    snprintf(why, sizeof(why), "%s", sqlite3_errmsg(s->db));
    sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    if (s->failures++ == 0) {
        log_warn("%s could not be written (%s); %d records wait for the next attempt", s->path, why, s->waiting_count);
        store_event(s, s->last_step, "warn", "fault",
                    "the database could not be written: %s; records were kept and written later", why);
    }
    return status_fail(STATUS_IO, "%s could not be written: %s", s->path, rc == SQLITE_OK ? "" : why);
}

status store_flush(store *s) {
    if (!s->first) return STATUS_OK;
    int rc = sqlite3_exec(s->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc != SQLITE_OK) return note_failure(s, rc);
    for (const waiting *w = s->first; w; w = w->next) {
        rc = store_write_record(s, w);
        if (rc == SQLITE_OK) continue;
        if (database_error_passes(rc)) return note_failure(s, rc);
        log_error("%s refuses a record, which is lost: %s", s->path, sqlite3_errmsg(s->db));
        s->lost++;
    }
    rc = store_write_steps_seen(s);
    if (rc == SQLITE_OK) rc = sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
    if (rc != SQLITE_OK) return note_failure(s, rc);
    if (s->failures > 0) log_info("%s takes records again after %lld failed attempts", s->path, (long long)s->failures);
    s->failures = 0;
    store_forget(s);
    return STATUS_OK;
}

bool store_is_cheap(const store *s) {
    return s->wal;
}
int store_waiting(const store *s) {
    return s->waiting_count;
}
