/* How a run goes on: which of its checkpoints, and whether this configuration may (docs/design.md section 9). */
#pragma once

#include "trainer/checkpoint.h"

/* What to tell when there is a database to tell it to. */
typedef struct resume_note {
    bool warn;
    char text[512];
} resume_note;

typedef struct resume {
    bool adopts;            /* the run folder is there and the run goes on in it */
    bool reads;             /* from a checkpoint; else it begins */
    char run[RUN_ID_BYTES]; /* the run folder's identity, "": it gets a new one */
    /* compute rank 0's: */
    char folder[CHECKPOINT_PATH_BYTES]; /* that holds the checkpoints */
    bool any_run;                       /* they may be another run's: the folder was named */
    int64_t *steps;                     /* [count] to try in this order */
    int count, next;
    resume_note *notes; /* [note_count], of which the first `said` are in the log */
    int note_count, said;
} resume;

/* Compute rank 0: what there is to go on from; a run's folder is held from here on (run_folder_hold). how: NULL (a new
 * run: nothing), "auto" (the run folder's newest checkpoint, or a new run where there is no such folder or no
 * checkpoint in it), or the path of a checkpoint or of a folder of them. CONFIG when the run folder is not a run's, or
 * is another run's than the checkpoint named; NO_INPUT when there is no checkpoint at that path; IO when another job
 * has the folder. */
status resume_find(resume *r, const config *c, const char *how);

/* The newest of them that is whole, into the model; *state: where it left off. What is damaged is named and left out,
 * and it and the run's other later checkpoints get the ending ".left": they are no part of the run's history any more.
 * The same verdict on all ranks: DATA when none is whole, CONFIG when model, attention, data or seed are others, naming
 * the key. Collective over roles->compute. windows: training samples. */
status resume_load(resume *r, const config *c, int64_t windows, params *p, ops *o, const comm_roles *roles,
                   checkpoint_state *state);

/* Compute rank 0: tells what was found, as events. */
void resume_tell(const resume *r, channel_sender *records, int64_t step);

void resume_free(resume *r);
