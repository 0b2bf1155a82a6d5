/* bulkhead convert: files of one kind into another's. */
#include "trainer/cli/command.h"
#include "trainer/convert.h"

#include <getopt.h>

static const char help[] = "usage: bulkhead convert IN... -o OUT --to FORMAT [--tokenizer FILE]\n"
                           "\n"
                           "Makes files of other kinds. Models go to Hugging Face's format and back by\n"
                           "`bulkhead export` and `bulkhead import`.\n"
                           "\n"
                           "Run databases, finished or being written, into a new folder:\n"
                           "  csv            a file a table, and schema.json with the types of columns\n"
                           "  tensorboard    event files: curves, singular values as histograms\n"
                           "  mlflow         MLflow's file store: mlflow ui --backend-store-uri OUT\n"
                           "\n"
                           "Token shards in llm.c's layout, one into a file, several into a new folder:\n"
                           "  uint16         tokens of 2 bytes; refused where an id does not fit\n"
                           "  uint32         tokens of 4 bytes\n"
                           "  dataset        as `bulkhead prepare` makes it; \"val\" in names is validation\n"
                           "\n"
                           "Tokenizers of BPE, refused where a trial finds other ids:\n"
                           "  tokenizer.json     of a SentencePiece model\n"
                           "  tokenizer.model    of a tokenizer.json of Llama 2's kind\n"
                           "\n"
                           "  -o, --output OUT    the file or folder to write\n"
                           "  --to FORMAT         one of the above\n"
                           "  --tokenizer FILE    of a dataset: tokenizer.model or tokenizer.json\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O.\n";

status cmd_convert(int argc, char **argv) {
    static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                            {"to", required_argument, NULL, 't'},
                                            {"tokenizer", required_argument, NULL, 'z'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    convert_request r = {0};
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":ho:", options, NULL)) != -1;) {
        switch (option) {
        case 'o':
            r.output = optarg;
            break;
        case 't':
            r.to = optarg;
            break;
        case 'z':
            r.tokenizer = optarg;
            break;
        case 'h':
            fputs(help, stdout);
            return STATUS_OK;
        default:
            return command_bad_option(argv, option);
        }
    }
    r.inputs = (const char *const *)argv + optind;
    r.count = argc - optind;
    if (r.count == 0)
        return status_fail(STATUS_USAGE, "nothing to convert; `bulkhead convert --help` says what can be");
    if (!r.output) return status_fail(STATUS_USAGE, "no output; name a file or folder behind -o");
    if (!r.to) return status_fail(STATUS_USAGE, "nothing said to convert to; --to names it");
    return convert_run(&r, stdout);
}
