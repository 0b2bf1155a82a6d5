/* Models in the layout of Hugging Face's transformers: where each of our parameters lies in theirs, and reading one.
 *
 * Names and configuration come from diag/analyze/architecture.h. Beyond what spectra ask for, the model has to be ours
 * to the last detail: dense layers, SiLU, no biases, plain rotary. DeepSeek's rotary dimensions are interleaved pairs
 * (2j, 2j + 1), ours are halves (j, j + D_r/2): its rows are ours in another order. */
#pragma once

#include "diag/analyze/architecture.h"
#include "diag/analyze/files.h"
#include "trainer/params.h"

enum { FOREIGN_NAME_BYTES = 160 };

/* DeepSeek's latent norms have this epsilon, whatever rms_norm_eps says. */
static const double FOREIGN_LATENT_EPS = 1e-6;

/* A parameter of ours in a tensor of theirs. */
typedef struct foreign_place {
    char name[FOREIGN_NAME_BYTES];
    bool vector;               /* of one dimension */
    int64_t rows, cols, first; /* of the tensor; where ours begins in it */
    int64_t head, rotary;      /* each `head` rows of ours end with so many interleaved ones; 0: none do */
} foreign_place;

/* c: of the model. interleaved: as DeepSeek does. INTERNAL when the variant has no such parameter. */
status foreign_place_of(foreign_place *out, const param *q, const config *c, bool interleaved);

/* Row r of ours is theirs: */
int64_t foreign_row_of(const foreign_place *p, int64_t r);

typedef struct foreign {
    architecture architecture; /* its config is the model's */
    files files;
    bool interleaved;
} foreign;

/* A folder with config.json and safetensors; settings as in architecture_read. NO_INPUT, DATA as architecture_read and
 * files_open; DATA, with the reason, when it is no model that can be ours. After a failure there is nothing to close.
 */
status foreign_open(foreign *out, const char *folder, const char *const *settings, int setting_count);
void foreign_close(foreign *f);

/* All parameters from it. DATA, naming the tensor, when one is missing, of another shape or no float type, holds a
 * value that is not finite, or belongs to no parameter. */
status foreign_load(foreign *f, params *p, ops *o);
