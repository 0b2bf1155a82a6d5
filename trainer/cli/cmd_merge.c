/* bulkhead merge: unites run databases in one file. */
#include "diag/merge.h"
#include "trainer/cli/command.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const char help[] = "usage: bulkhead merge DB... -o DB\n"
                           "\n"
                           "Copies the runs of databases (run.db files or run folders, finished or being\n"
                           "written) into one file, for questions across runs: query, findings, SQL. The\n"
                           "file is made, or gets what it lacks: a run that it has is brought up to date,\n"
                           "unless it knows more of it than the source. Merging twice changes nothing.\n"
                           "\n"
                           "  -o, --output DB    the file; it must not be among the sources\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O.\n";

status cmd_merge(int argc, char **argv) {
    static const struct option options[] = {
        {"output", required_argument, NULL, 'o'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    const char *output = NULL;
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":ho:", options, NULL)) != -1;) {
        switch (option) {
        case 'o':
            if (output) return status_fail(STATUS_USAGE, "one output: %s, or %s", output, optarg);
            output = optarg;
            break;
        case 'h':
            fputs(help, stdout);
            return STATUS_OK;
        default:
            return command_bad_option(argv, option);
        }
    }
    if (!output) return status_fail(STATUS_USAGE, "no output; name a file behind -o");
    if (optind == argc) return status_fail(STATUS_USAGE, "no database; name run.db files or run folders");
    merge_counts counts;
    TRY(merge_databases((const char *const *)argv + optind, argc - optind, output, &counts));
    printf("%s: %d run%s added, %d brought up to date", output, counts.added, counts.added == 1 ? "" : "s",
           counts.updated);
    if (counts.same > 0) printf(", %d unchanged", counts.same);
    if (counts.older > 0) printf(", %d left as they were (the sources know less of them)", counts.older);
    printf("\n");
    return STATUS_OK;
}
