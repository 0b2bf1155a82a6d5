/* The vocabulary of a run, where the configuration leaves it to the dataset. */
#pragma once

#include "core/config.h"
#include "data/info.h"

/* Reads the dataset.json beside the training shards into *info (info->vocab 0: there is none, as beside shards from
 * elsewhere) and fills c->model.vocab from it when that is not set. CONFIG when neither says it, or when the tokenizer
 * has more pieces than an explicit model.vocab. */
status vocab_resolve(config *c, dataset_info *info);
