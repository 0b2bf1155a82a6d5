/* Snapshot messages. What arrives is checked before it is believed: lengths, boxes, agreement between ranks, and that
 * no element comes twice. */
#include "comm/snapshot.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_PIECES = 1 << 16 };
static const int64_t most_elements = (int64_t)1 << 30; /* of one tensor: far above any, far below what wraps */

static const char magic[8] = "BHSNAP1";

typedef struct message_header { /* what a message begins with; the table follows */
    char magic[8];
    int64_t pieces;
} message_header;

static size_t table_end(int64_t pieces) {
    return sizeof(message_header) + (size_t)pieces * sizeof(snapshot_piece);
}

size_t snapshot_message_bytes(const snapshot_piece *pieces, int count) {
    size_t values = 0;
    for (int i = 0; i < count; i++) values += (size_t)(pieces[i].n_rows * pieces[i].n_cols);
    return table_end(count) + values * sizeof(float);
}

float *snapshot_message_begin(void *message, const snapshot_piece *pieces, int count) {
    message_header header = {.pieces = count};
    memcpy(header.magic, magic, sizeof magic);
    memcpy(message, &header, sizeof header);
    snapshot_piece *table = (snapshot_piece *)((char *)message + sizeof header);
    for (int i = 0; i < count; i++) {
        table[i] = pieces[i];
        strncpy(table[i].name, pieces[i].name, sizeof table[i].name - 1); /* also clears what follows the name */
        table[i].name[sizeof table[i].name - 1] = '\0';
    }
    return (float *)((char *)message + table_end(count));
}

static status bad_piece(const channel_message *m, int64_t index, const char *why) {
    return status_fail(STATUS_DATA, "snapshot of step %lld from compute rank %d: piece %lld %s", (long long)m->step,
                       m->sender, (long long)index, why);
}

static status check_piece(const channel_message *m, int64_t index, const snapshot_piece *p) {
    if (p->name[0] == '\0' || !memchr(p->name, '\0', sizeof p->name)) return bad_piece(m, index, "has no proper name");
    if (p->rows < 1 || p->cols < 1 || p->cols > most_elements / p->rows)
        return bad_piece(m, index, "is of a tensor of impossible shape");
    if (p->n_rows < 1 || p->n_cols < 1 || p->row < 0 || p->col < 0 || p->n_rows > p->rows || p->n_cols > p->cols ||
        p->row > p->rows - p->n_rows || p->col > p->cols - p->n_cols)
        return bad_piece(m, index, "lies outside its tensor");
    return STATUS_OK;
}

/* Finds the table of a message whose every length agrees with every other. */
static status check_message(const channel_message *m, const snapshot_piece **table, int *pieces) {
    message_header header;
    if (m->kind != CHANNEL_SNAPSHOT || m->bytes < sizeof header)
        return status_fail(STATUS_DATA, "message of kind %d and %zu bytes from compute rank %d is no snapshot", m->kind,
                           m->bytes, m->sender);
    memcpy(&header, m->data, sizeof header);
    if (memcmp(header.magic, magic, sizeof magic) != 0 || header.pieces < 0 || header.pieces > MOST_PIECES ||
        table_end(header.pieces) > m->bytes)
        return status_fail(STATUS_DATA, "snapshot of step %lld from compute rank %d: its header is damaged",
                           (long long)m->step, m->sender);
    *table = (const snapshot_piece *)((const char *)m->data + sizeof header);
    *pieces = (int)header.pieces;
    size_t room = (m->bytes - table_end(header.pieces)) / sizeof(float);
    for (int i = 0; i < *pieces; i++) {
        TRY(check_piece(m, i, &(*table)[i]));
        size_t values = (size_t)((*table)[i].n_rows * (*table)[i].n_cols); /* at most rows * cols: no overflow */
        if (values > room) return bad_piece(m, i, "goes beyond the end of the message");
        room -= values;
    }
    if (room != 0 || (m->bytes - table_end(header.pieces)) % sizeof(float) != 0)
        return status_fail(STATUS_DATA, "snapshot of step %lld from compute rank %d: bytes follow its last piece",
                           (long long)m->step, m->sender);
    return STATUS_OK;
}

static snapshot_tensor *find(const snapshot *s, const char *name) {
    for (int i = 0; i < s->count; i++)
        if (strcmp(s->tensors[i].name, name) == 0) return &s->tensors[i];
    return NULL;
}

const snapshot_tensor *snapshot_find(const snapshot *s, const char *name) {
    return find(s, name);
}

static status no_memory(const channel_message *m, const char *name) {
    return status_fail(STATUS_DATA, "snapshot of step %lld from compute rank %d: no memory for %s", (long long)m->step,
                       m->sender, name);
}

/* The piece's tensor, new when nobody has mentioned it yet. */
static status find_or_add(snapshot_tensor **out, snapshot *s, const channel_message *m, const snapshot_piece *p) {
    snapshot_tensor *t = find(s, p->name);
    if (t && (t->rows != p->rows || t->cols != p->cols))
        return status_fail(STATUS_DATA,
                           "snapshot of step %lld: compute rank %d says that %s is %lld x %lld, others %lld x %lld",
                           (long long)m->step, m->sender, p->name, (long long)p->rows, (long long)p->cols,
                           (long long)t->rows, (long long)t->cols);
    if (!t) {
        snapshot_tensor *more = realloc(s->tensors, (size_t)(s->count + 1) * sizeof *more);
        if (!more) return no_memory(m, p->name);
        s->tensors = more;
        t = &more[s->count];
        *t = (snapshot_tensor){.rows = p->rows, .cols = p->cols};
        memcpy(t->name, p->name, sizeof t->name);
        t->data = malloc((size_t)(p->rows * p->cols) * sizeof(float));
        if (!t->data) return no_memory(m, p->name);
        s->count++;
    }
    *out = t;
    return STATUS_OK;
}

static bool overlap(const snapshot_box *a, const snapshot_piece *b) {
    return a->row < b->row + b->n_rows && b->row < a->row + a->n_rows && a->col < b->col + b->n_cols &&
           b->col < a->col + a->n_cols;
}

/* Notes the box, unless part of it has arrived before. */
static status claim(snapshot_tensor *t, const channel_message *m, const snapshot_piece *p) {
    for (int i = 0; i < t->boxes; i++)
        if (overlap(&t->box[i], p))
            return status_fail(STATUS_DATA,
                               "snapshot of step %lld: compute rank %d sends part of %s that has arrived already",
                               (long long)m->step, m->sender, p->name);
    snapshot_box *more = realloc(t->box, (size_t)(t->boxes + 1) * sizeof *more);
    if (!more) return no_memory(m, p->name);
    t->box = more;
    t->box[t->boxes++] = (snapshot_box){p->row, p->col, p->n_rows, p->n_cols};
    t->seen += p->n_rows * p->n_cols;
    return STATUS_OK;
}

status snapshot_add(snapshot *s, const channel_message *message) {
    const snapshot_piece *table = NULL;
    int pieces = 0;
    TRY(check_message(message, &table, &pieces));
    if (s->senders_seen > 0 && message->step != s->step)
        return status_fail(STATUS_DATA, "compute rank %d sent step %lld while the snapshot of step %lld is open",
                           message->sender, (long long)message->step, (long long)s->step);
    s->step = message->step;
    s->senders_seen++;
    const float *values = (const float *)((const char *)message->data + table_end(pieces));
    for (int i = 0; i < pieces; i++) {
        const snapshot_piece *p = &table[i];
        snapshot_tensor *t = NULL;
        TRY(find_or_add(&t, s, message, p));
        TRY(claim(t, message, p));
        for (int64_t row = 0; row < p->n_rows; row++, values += p->n_cols)
            memcpy(&t->data[(p->row + row) * t->cols + p->col], values, (size_t)p->n_cols * sizeof *values);
    }
    return STATUS_OK;
}

bool snapshot_whole(const snapshot *s) {
    for (int i = 0; i < s->count; i++)
        if (s->tensors[i].seen != s->tensors[i].rows * s->tensors[i].cols) return false;
    return s->count > 0;
}

void snapshot_free(snapshot *s) {
    for (int i = 0; i < s->count; i++) {
        free(s->tensors[i].data);
        free(s->tensors[i].box);
    }
    free(s->tensors);
    *s = (snapshot){0};
}
