/* bulkhead export: a trained model for Hugging Face's transformers and what reads its format. */
#include "trainer/cli/command.h"
#include "trainer/cli/folder_command.h"
#include "trainer/portable.h"

static const char help[] =
    "usage: bulkhead export MODEL -o FOLDER [--tokenizer FILE]\n"
    "\n"
    "Writes a trained model in Hugging Face's format: config.json, model.safetensors (fp32) and, where the run has a\n"
    "SentencePiece model, tokenizer.model. MODEL is a run's folder (its latest checkpoint), a checkpoint, or a folder "
    "with\n"
    "model.safetensors and config.yaml. FOLDER must not be there yet, or be empty.\n"
    "\n"
    "mha becomes a LlamaForCausalLM, mla-decoupled a DeepseekV3ForCausalLM whose layers are all dense, mla-prerope a "
    "class\n"
    "of its own in modeling_bulkhead.py (trust_remote_code=True). What these do not have is refused: values of "
    "another\n"
    "width than keys in mha; in mla-decoupled latents without norms and a norm_eps other than 1e-6.\n"
    "\n"
    "  --tokenizer FILE  a SentencePiece model; the default is the one of the run's dataset\n";

status cmd_export(int argc, char **argv) {
    return folder_command(argc, argv, help, portable_export);
}
