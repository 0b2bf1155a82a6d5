/* bulkhead export: a trained model for Hugging Face's transformers and what reads its format. */
#include "trainer/cli/command.h"
#include "trainer/cli/folder_command.h"
#include "trainer/portable.h"

static const char help[] = "usage: bulkhead export MODEL -o FOLDER [--tokenizer FILE]\n"
                           "\n"
                           "Writes a trained model in Hugging Face's format: config.json, model.safetensors\n"
                           "(fp32) and, where it is found, the tokenizer with tokenizer_config.json. MODEL\n"
                           "is a run's folder (its latest checkpoint), a checkpoint, or a folder with\n"
                           "model.safetensors and config.yaml. FOLDER must not be there yet, or be empty.\n"
                           "\n"
                           "mha becomes a LlamaForCausalLM, mla-decoupled a DeepseekV3ForCausalLM whose\n"
                           "layers are all dense, mla-prerope a class of its own in modeling_bulkhead.py\n"
                           "(trust_remote_code=True). What these do not have is refused: values of another\n"
                           "width than keys in mha; in mla-decoupled latents without norms and a norm_eps\n"
                           "other than 1e-6.\n"
                           "\n"
                           "  -o FOLDER          the folder to write\n"
                           "  --tokenizer FILE   tokenizer.model or .json; the default is the dataset's\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O, 78 config.\n";

status cmd_export(int argc, char **argv) {
    return folder_command(argc, argv, help, portable_export);
}
