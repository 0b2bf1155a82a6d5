/* Weights from a safetensors file that holds the whole model: each tensor under its global name, unpadded, [rows, cols]
 * (a gain is one row), of any float type. A rank reads its boxes alone, so the file serves every P and Q. */
#pragma once

#include "core/safetensors.h"
#include "trainer/params.h"

/* Every parameter from the file; what else it holds is left alone. DATA, naming file and tensor, when one is missing,
 * has another shape, is of no float type, or holds a value in this rank's box that is not finite in fp32. */
status weights_load(params *p, ops *o, const safetensors *f);

/* The same from a file, the folder of a checkpoint, or one in the layout of Hugging Face's, that holds these parameters
 * and nothing else. NO_INPUT when it cannot be opened, DATA also when it is not well-formed or holds a tensor that the
 * model does not have. What else config.json says there (rope_theta, rms_norm_eps) is the caller's concern. */
status weights_load_path(params *p, ops *o, const char *path);

/* Whether it is a folder in that layout. */
bool weights_are_foreign(const char *path);
