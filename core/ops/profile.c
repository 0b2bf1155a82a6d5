#include "core/ops/profile.h"

#include "core/clock.h"

#include <stdlib.h>

const char *const profile_names[PROFILE_PHASES] = {
#define PROFILE_NAME(identifier, name) [PROFILE_##identifier] = name,
    PROFILE_PHASE_LIST(PROFILE_NAME)
#undef PROFILE_NAME
};

/* Room for one more mark. Without memory the phase that is entered counts as the one before. */
static bool has_room(profile_marks *m) {
    if (m->count < m->capacity) return true;
    int capacity = m->capacity ? 2 * m->capacity : 256;
    ops_mark *mark = realloc(m->mark, (size_t)capacity * sizeof *mark);
    if (mark) m->mark = mark;
    profile_phase *phase = realloc(m->phase, (size_t)capacity * sizeof *phase);
    if (phase) m->phase = phase;
    if (!mark || !phase) return false;
    for (int i = m->capacity; i < capacity; i++) m->mark[i] = (ops_mark){0};
    m->capacity = capacity;
    return true;
}

/* name NULL: no phase follows. */
static void leave_mark(profile *p, profile_phase next, const char *name) {
    profile_marks *m = &p->marks;
    double flops = ops_flops(p->ops);
    p->work[p->current].flops += flops - p->flops;
    p->flops = flops;
    if (!has_room(m)) return;
    p->ops->mark(p->ops, &m->mark[m->count], name);
    m->phase[m->count++] = p->current = next;
}

static void read_marks(profile *p, profile_marks *m) {
    for (int i = 0; i + 1 < m->count; i++)
        p->work[m->phase[i]].seconds += p->ops->mark_span_s(p->ops, &m->mark[i], &m->mark[i + 1]);
    m->count = 0;
}

static void free_marks(profile *p, profile_marks *m) {
    for (int i = 0; i < m->capacity; i++) p->ops->mark_release(p->ops, &m->mark[i]);
    free(m->mark);
    free(m->phase);
    *m = (profile_marks){0};
}

void profile_open(profile *p, ops *o) {
    *p = (profile){.ops = o};
}

void profile_begin(profile *p) {
    p->since_s = clock_now_s();
    p->flops = ops_flops(p->ops);
    leave_mark(p, PROFILE_IDLE, profile_names[PROFILE_IDLE]);
}

void profile_end(profile *p) {
    leave_mark(p, PROFILE_IDLE, NULL);
    p->wall_s += clock_now_s() - p->since_s;
    p->steps++;
    read_marks(p, &p->before);
    profile_marks read = p->before;
    p->before = p->marks;
    p->marks = read;
}

void profile_finish(profile *p) {
    read_marks(p, &p->before);
}

void profile_close(profile *p) {
    free_marks(p, &p->marks);
    free_marks(p, &p->before);
}

profile_phase profile_switch(profile *p, profile_phase next) {
    profile_phase before = p->current;
    if (next != before && !p->paused) leave_mark(p, next, profile_names[next]);
    return before;
}

void profile_pause(profile *p) {
    profile_switch(p, PROFILE_APART);
    p->paused = true;
    p->wall_s += clock_now_s() - p->since_s;
}

void profile_resume(profile *p) {
    p->since_s = clock_now_s();
    p->paused = false;
    profile_switch(p, PROFILE_IDLE);
}
