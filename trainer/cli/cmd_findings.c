/* bulkhead findings: judges the runs of databases, read-only. */
#include "diag/findings.h"
#include "trainer/cli/command.h"

#include <getopt.h>
#include <math.h>
#include <stdlib.h>

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

static status read_real(const char *option, const char *text, double above, double below, double *to) {
    char *end = NULL;
    double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x) || x <= above || x >= below)
        return status_fail(STATUS_USAGE, "--%s wants a number above %g and below %g, not \"%s\"", option, above, below,
                           text);
    *to = x;
    return STATUS_OK;
}

static status read_options(int argc, char **argv, findings_request *r, bool *help) {
    static const struct option options[] = {{"theta", required_argument, NULL, 't'},
                                            {"alpha", required_argument, NULL, 'a'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 't':
            TRY(read_real("theta", optarg, 1, 1e6, &r->theta));
            r->theta_given = true;
            break;
        case 'a':
            TRY(read_real("alpha", optarg, 0, 1, &r->alpha));
            break;
        case 'j':
            r->json = true;
            break;
        case 'h':
            *help = true;
            return STATUS_OK;
        default:
            return command_bad_option(argv, option);
        }
    }
    return STATUS_OK;
}

status cmd_findings(int argc, char **argv) {
    findings_request r = {.theta = 1.5, .alpha = 0.05};
    bool help = false;
    TRY(read_options(argc, argv, &r, &help));
    if (help) {
        print_help();
        return STATUS_OK;
    }
    if (optind == argc) return status_fail(STATUS_USAGE, "no database; name a run.db or a run folder");
    return findings_report((const char *const *)argv + optind, argc - optind, &r, stdout);
}
