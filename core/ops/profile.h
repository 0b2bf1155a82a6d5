/* Where the time of steps goes: phases of a table's queue, one at a time, so that they never overlap and fill the step.
 *
 * Entering a phase leaves a mark in the queue; the time from one mark to the next belongs to the phase that was entered
 * at the first. So what is queued later does not count before the device comes to it, and on the CPU the clock is read.
 * Marks are read one step later, when the device is past them: nothing waits. Where ops.profile is NULL nobody looks,
 * and entering a phase is one branch. One thread. */
#pragma once

#include "core/ops/ops.h"

/* PHASE(identifier, name). Idle: nothing is queued that is of another phase. Collective: one that its rank waits for at
 * once; wait: the calls for those that go on beside other work. Apart: not of the step (validation, checkpoints). */
#define PROFILE_PHASE_LIST(PHASE)                                                                                      \
    PHASE(EMBEDDING, "embedding")                                                                                      \
    PHASE(PROJECTIONS, "projections")                                                                                  \
    PHASE(ATTENTION, "attention")                                                                                      \
    PHASE(MLP, "mlp")                                                                                                  \
    PHASE(HEAD, "head and loss")                                                                                       \
    PHASE(OPTIMIZER, "optimizer")                                                                                      \
    PHASE(COLLECTIVE, "collective")                                                                                    \
    PHASE(WAIT, "communication")                                                                                       \
    PHASE(SNAPSHOT, "snapshot")                                                                                        \
    PHASE(IDLE, "idle")                                                                                                \
    PHASE(APART, "apart")

typedef enum profile_phase {
#define PROFILE_ENUM(identifier, name) PROFILE_##identifier,
    PROFILE_PHASE_LIST(PROFILE_ENUM)
#undef PROFILE_ENUM
        PROFILE_PHASES
} profile_phase;

extern const char *const profile_names[PROFILE_PHASES];

typedef struct profile_work {
    double seconds;
    double flops, bytes; /* of products and attention; read and written where that is what a phase does */
} profile_work;

typedef struct profile_marks { /* of one step: phase[i] lasts from mark i to mark i + 1 */
    ops_mark *mark;
    profile_phase *phase;
    int count, capacity;
} profile_marks;

typedef struct profile {
    ops *ops;
    profile_phase current;
    bool paused;
    profile_work work[PROFILE_PHASES]; /* of all steps whose marks have been read */
    profile_marks marks, before;       /* of this step; of the one before, not read yet */
    double flops;                      /* that ops had counted when the phase was entered */
    double wall_s, since_s;            /* of the steps by the host's clock: before since_s */
    int64_t steps;
} profile;

/* A profile of that table, whose ops.profile it does not set. */
void profile_open(profile *p, ops *o);

/* Around each step. begin: idle is entered. */
void profile_begin(profile *p);
void profile_end(profile *p);

/* Reads what is left of the marks; waits for the device. No step follows. */
void profile_finish(profile *p);
void profile_close(profile *p);

/* Between them nothing is of the step, and phases that are entered are not heeded. */
void profile_pause(profile *p);
void profile_resume(profile *p);

/* Enters a phase that is not NULL's; returns the one before, which the caller may enter again. */
profile_phase profile_switch(profile *p, profile_phase next);

static inline profile_phase profile_enter(profile *p, profile_phase next) {
    return p ? profile_switch(p, next) : next;
}

/* Whether somebody looks, now. */
static inline bool profile_looks(const profile *p) {
    return p && !p->paused;
}

/* Work of the current phase, which counts its flops by itself. */
static inline void profile_bytes(profile *p, double bytes) {
    if (p) p->work[p->current].bytes += bytes;
}
