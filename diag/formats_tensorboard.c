/* Event files: records of a length, an event as TensorFlow's event.proto has it, and checksums (CRC-32C, masked). */
#include "core/protobuf.h"
#include "diag/formats_private.h"
#include "diag/reading.h"

#include <stdlib.h>
#include <string.h>

/* event.proto, summary.proto */
enum {
    EVENT_TIME = 1,
    EVENT_STEP = 2,
    EVENT_VERSION = 3,
    EVENT_SUMMARY = 5,
    SUMMARY_VALUE = 1,
    VALUE_TAG = 1,
    VALUE_NUMBER = 2,
    VALUE_HISTOGRAM = 5,
    HISTOGRAM_MIN = 1,
    HISTOGRAM_MAX = 2,
    HISTOGRAM_COUNT = 3,
    HISTOGRAM_SUM = 4,
    HISTOGRAM_SQUARES = 5,
    HISTOGRAM_LIMITS = 6,
    HISTOGRAM_BUCKETS = 7,
    BUCKETS = 30,
};

typedef struct events {
    const formats_run *run;
    FILE *out;
    uint32_t crc_of[256];
} events;

static void make_crc_table(events *e) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0); /* Castagnoli, reflected */
        e->crc_of[byte] = crc;
    }
}

static void write_crc(const events *e, const void *bytes, size_t length) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < length; i++) crc = crc >> 8 ^ e->crc_of[(crc ^ ((const unsigned char *)bytes)[i]) & 255];
    crc = ~crc;
    crc = (crc >> 15 | crc << 17) + 0xA282EAD8u;
    fwrite(&crc, sizeof crc, 1, e->out);
}

/* Frees the event. */
static status write_event(const events *e, protobuf *event) {
    uint64_t length = event->length;
    bool failed = event->failed;
    if (!failed) {
        fwrite(&length, sizeof length, 1, e->out);
        write_crc(e, &length, sizeof length);
        fwrite(event->bytes, 1, event->length, e->out);
        write_crc(e, event->bytes, event->length);
    }
    free(event->bytes);
    return failed ? status_fail(STATUS_INTERNAL, "out of memory") : STATUS_OK;
}

static status write_version(const events *e) {
    static const char version[] = "brain.Event:2";
    protobuf event = {0};
    protobuf_put_double(&event, EVENT_TIME, e->run->started_s);
    protobuf_put_bytes(&event, EVENT_VERSION, version, sizeof version - 1);
    return write_event(e, &event);
}

/* An event of one value, whose bytes are freed. */
static status write_value(const events *e, int64_t step, protobuf *value) {
    protobuf summary = {0}, event = {0};
    protobuf_put_bytes(&summary, SUMMARY_VALUE, value->bytes, value->length);
    protobuf_put_double(&event, EVENT_TIME, formats_time_s(e->run, step));
    protobuf_put_integer(&event, EVENT_STEP, step);
    protobuf_put_bytes(&event, EVENT_SUMMARY, summary.bytes, summary.length);
    event.failed = event.failed || summary.failed || value->failed;
    free(value->bytes);
    free(summary.bytes);
    return write_event(e, &event);
}

static status write_scalar(void *user, const char *key, int64_t step, double number) {
    protobuf value = {0};
    protobuf_put_bytes(&value, VALUE_TAG, key, strlen(key));
    protobuf_put_float(&value, VALUE_NUMBER, (float)number);
    return write_value(user, step, &value);
}

/* A blob's double, wherever it lies. */
static double double_at(const char *blob, int64_t i) {
    double value;
    memcpy(&value, blob + i * (int64_t)sizeof value, sizeof value);
    return value;
}

/* Buckets of one width from the smallest to the largest of the count > 0 doubles, in descending order. */
static void put_histogram(protobuf *value, const char *blob, int64_t count) {
    protobuf h = {0};
    double limits[BUCKETS], buckets[BUCKETS] = {0}, sum = 0, squares = 0;
    double least = double_at(blob, count - 1), largest = double_at(blob, 0), width = largest - least;
    for (int b = 0; b < BUCKETS; b++) limits[b] = b + 1 < BUCKETS ? least + width * (b + 1) / BUCKETS : largest;
    for (int64_t i = 0, b = BUCKETS - 1; i < count; i++) {
        double s = double_at(blob, i);
        while (b > 0 && s <= limits[b - 1]) b--;
        buckets[b]++;
        sum += s;
        squares += s * s;
    }
    protobuf_put_double(&h, HISTOGRAM_MIN, least);
    protobuf_put_double(&h, HISTOGRAM_MAX, largest);
    protobuf_put_double(&h, HISTOGRAM_COUNT, (double)count);
    protobuf_put_double(&h, HISTOGRAM_SUM, sum);
    protobuf_put_double(&h, HISTOGRAM_SQUARES, squares);
    protobuf_put_bytes(&h, HISTOGRAM_LIMITS, limits, sizeof limits);
    protobuf_put_bytes(&h, HISTOGRAM_BUCKETS, buckets, sizeof buckets);
    protobuf_put_bytes(value, VALUE_HISTOGRAM, h.bytes, h.length);
    value->failed = value->failed || h.failed;
    free(h.bytes);
}

static status write_histograms(events *e) {
    static const char sql[] =
        "SELECT 'singular_values/' || form || '.' || part || printf('/layer%02d', layer) ||"
        " CASE WHEN head >= 0 THEN printf('/head%02d', head) ELSE '' END || CASE WHEN tensor <> '' THEN '/' || tensor"
        " ELSE '' END, step, singular_values FROM esd JOIN snapshots USING(snapshot_id) JOIN matrices m "
        "USING(matrix_id)"
        " WHERE m.run_id = ?1 AND length(singular_values) >= 8 ORDER BY matrix_id, step";
    const formats *f = e->run->formats;
    sqlite3_stmt *q = NULL;
    TRY(formats_ask(f, &q, sql));
    sqlite3_bind_int64(q, 1, e->run->run_id);
    status s = STATUS_OK;
    for (bool row = true; s == STATUS_OK;) {
        s = reading_row(f->path, f->db, q, &row);
        if (s != STATUS_OK || !row) break;
        protobuf value = {0};
        protobuf_put_bytes(&value, VALUE_TAG, sqlite3_column_text(q, 0), (size_t)sqlite3_column_bytes(q, 0));
        put_histogram(&value, sqlite3_column_blob(q, 2), sqlite3_column_bytes(q, 2) / 8);
        s = write_value(e, sqlite3_column_int64(q, 1), &value);
        f->counts->values++;
    }
    sqlite3_finalize(q);
    return s;
}

status formats_tensorboard(const formats_run *run) {
    char name[320];
    formats_file file;
    events e = {.run = run};
    make_crc_table(&e);
    snprintf(name, sizeof name, "%s/events.out.tfevents.%010.0f.bulkhead", run->name, run->started_s);
    TRY(formats_open(run->formats, &file, name));
    e.out = file.text;
    status s = write_version(&e);
    if (s == STATUS_OK) s = formats_curves(run, write_scalar, &e);
    if (s == STATUS_OK) s = write_histograms(&e);
    return formats_close(run->formats, &file, s);
}
