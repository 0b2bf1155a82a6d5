/* bulkhead import: a model of others, to go on with its training here. */
#include "trainer/cli/command.h"
#include "trainer/cli/folder_command.h"
#include "trainer/portable.h"

static const char help[] = "usage: bulkhead import MODEL -o FOLDER [--tokenizer FILE]\n"
                           "\n"
                           "Makes of a folder in Hugging Face's format what `bulkhead train` goes on with:\n"
                           "FOLDER/model.safetensors with Bulkhead's names (fp32), FOLDER/config.yaml, which\n"
                           "describes the model and starts from it, and the tokenizer where there is one.\n"
                           "FOLDER must not be there yet, or be empty. Then:\n"
                           "`bulkhead train FOLDER/config.yaml --set data.train=... --set train.steps=...`\n"
                           "\n"
                           "Llama, Mistral and DeepSeek-V2 and -V3 whose layers are dense are taken, in\n"
                           "bf16, fp16 or fp32, and what `bulkhead export` has made; biases, experts,\n"
                           "sliding windows and scaled rotary frequencies are refused. A run or a checkpoint\n"
                           "is taken too.\n"
                           "\n"
                           "  -o FOLDER          the folder to write\n"
                           "  --tokenizer FILE   tokenizer.model or .json; the default is that in MODEL\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O.\n";

status cmd_import(int argc, char **argv) {
    return folder_command(argc, argv, help, portable_import);
}
