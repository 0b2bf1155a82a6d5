/* bulkhead import: a model of others, to go on with its training here. */
#include "trainer/cli/command.h"
#include "trainer/cli/folder_command.h"
#include "trainer/portable.h"

static const char help[] =
    "usage: bulkhead import MODEL -o FOLDER [--tokenizer FILE]\n"
    "\n"
    "Makes of a folder in Hugging Face's format what `bulkhead train` goes on with: FOLDER/model.safetensors with\n"
    "Bulkhead's names (fp32), FOLDER/config.yaml, which describes the model and starts from it, and tokenizer.model "
    "where\n"
    "there is one. FOLDER must not be there yet, or be empty.\n"
    "\n"
    "Llama, Mistral and DeepSeek-V2 and -V3 whose layers are dense are taken, in bf16, fp16 or fp32, and what "
    "`bulkhead\n"
    "export` has made; biases, experts, sliding windows and scaled rotary frequencies are refused. A run or a "
    "checkpoint\n"
    "is taken too.\n"
    "\n"
    "  bulkhead train FOLDER/config.yaml --set data.train=... --set train.steps=...\n"
    "\n"
    "  --tokenizer FILE  a SentencePiece model; the default is MODEL/tokenizer.model\n";

status cmd_import(int argc, char **argv) {
    return folder_command(argc, argv, help, portable_import);
}
