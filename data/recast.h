/* Tokenizers of one kind into the other: SentencePiece's BPE models and tokenizer.json of Llama 2's kind.
 *
 * SentencePiece joins the pair whose piece has the highest score, the leftmost where several pairs make that piece, and
 * characters that are no pieces too; merges are of tokens and have an order among those pairs. So what is written is
 * tried: 20,000 texts of random pieces and characters, drawn by a fixed seed, must have the same ids in both, or the
 * conversion is refused. Unigram models are always: SentencePiece adds their scores in fp32, tokenizers in fp64, and
 * ties fall differently. */
#pragma once

#include "core/status.h"

/* DATA, with the reason, when the model is no BPE model, changes characters, has no bytes for what has no piece, or has
 * user-defined or unused pieces, and when a text of the trial has other ids. */
status recast_to_json(const char *model_file, const char *json_file);

/* DATA, with the reason, when the file does not write spaces as U+2581 and nothing else, splits words, has tokens that
 * no merge makes or none for some byte, and when a text of the trial has other ids. */
status recast_to_model(const char *json_file, const char *model_file);
