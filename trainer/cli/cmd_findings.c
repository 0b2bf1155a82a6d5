/* bulkhead findings: judges the runs of databases, read-only. */
#include "trainer/cli/command.h"
#include "trainer/cli/findings_arguments.h"

#include <stdio.h>

static void print_help(void) {
    puts("usage: bulkhead findings DB... [--theta X] [--alpha A] [--json]\n"
         "\n"
         "Judges the runs of databases (run.db files, run folders, merged files) against the product null: onset,\n"
         "persistence and collapse of each variant's heads, propagation from layer to layer, coincidence of spike and\n"
         "collapse, prevention by mla-decoupled. Each is `found`, `not found` or `undetermined` with the reason; the\n"
         "definitions are in docs/design.md, section 6.5. Nothing is written. The same data gives the same answer.\n"
         "\n"
         "options:\n"
         "  --theta X   effect size that verdicts are for: largest eigenvalue over mean, over that of the null (e^m);\n"
         "              fix it beforehand from other seeds (default 1.5). The curve over 1.25, 1.5, 2, 3, 5 is always "
         "there\n"
         "  --alpha A   level of the whole study, Holm over its tests (default 0.05)\n"
         "  --json      for programs");
}

static status read_options(int argc, char **argv, findings_request *r, bool *help) {
    static const struct option options[] = {
        FINDINGS_ARGUMENTS, {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    optind = 1;
    opterr = 0;
    for (int option; !*help && (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 'j':
            r->json = true;
            break;
        case 'h':
            *help = true;
            break;
        default:
            TRY(findings_arguments_take(r, argv, option));
        }
    }
    return STATUS_OK;
}

status cmd_findings(int argc, char **argv) {
    findings_request r = findings_defaults;
    bool help = false;
    TRY(read_options(argc, argv, &r, &help));
    if (help) {
        print_help();
        return STATUS_OK;
    }
    if (optind == argc) return status_fail(STATUS_USAGE, "no database; name a run.db or a run folder");
    return findings_report((const char *const *)argv + optind, argc - optind, &r, stdout);
}
