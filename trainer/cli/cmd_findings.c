/* bulkhead findings: judges the runs of databases, read-only. */
#include "trainer/cli/command.h"
#include "trainer/cli/findings_arguments.h"

#include <stdio.h>

static const char help[] = "usage: bulkhead findings DB... [--theta X] [--alpha A] [--json]\n"
                           "\n"
                           "Judges the runs of databases (run.db files, run folders, merged files) against\n"
                           "the product null: onset, persistence and collapse of each variant's heads,\n"
                           "propagation from layer to layer, coincidence of spike and collapse, prevention\n"
                           "by mla-decoupled. Each is `found`, `not found` or `undetermined` with the\n"
                           "reason; docs/design.md, section 6.5, defines them. Nothing is written; the same\n"
                           "data gives the same answer.\n"
                           "\n"
                           "  --theta X    effect size that verdicts are for: largest eigenvalue over mean,\n"
                           "               over that of the null (e^m). Fix it beforehand from other seeds\n"
                           "               (1.5); the curve over 1.25, 1.5, 2, 3, 5 is always there\n"
                           "  --alpha A    level of the whole study, Holm over its tests (0.05)\n"
                           "  --json       for programs\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O.\n";

static status read_options(int argc, char **argv, findings_request *r, bool *show_help) {
    static const struct option options[] = {
        FINDINGS_ARGUMENTS, {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    optind = 1;
    opterr = 0;
    for (int option; !*show_help && (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 'j':
            r->json = true;
            break;
        case 'h':
            *show_help = true;
            break;
        default:
            TRY(findings_arguments_take(r, argv, option));
        }
    }
    return STATUS_OK;
}

status cmd_findings(int argc, char **argv) {
    findings_request r = findings_defaults;
    bool show_help = false;
    TRY(read_options(argc, argv, &r, &show_help));
    if (show_help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    if (optind == argc) return status_fail(STATUS_USAGE, "no database; name a run.db or a run folder");
    return findings_report((const char *const *)argv + optind, argc - optind, &r, stdout);
}
