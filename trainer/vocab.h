/* The vocabulary of a run, where the configuration leaves it to the dataset. */
#pragma once

#include "core/config.h"

/* Fills c->model.vocab from the dataset.json beside the training shards when it is not set. CONFIG when there is none
 * to read, or when the tokenizer named there has more pieces than an explicit model.vocab. */
status vocab_resolve(config *c);
