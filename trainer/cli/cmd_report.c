/* bulkhead report: one page about the runs of databases. */
#include "diag/report.h"
#include "trainer/cli/command.h"
#include "trainer/cli/findings_arguments.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const char help[] = "usage: bulkhead report DB... -o FILE.html [OPTION...]\n"
                           "\n"
                           "Makes one HTML page about the runs of databases (run.db files, run folders,\n"
                           "merged files; finished or being written): loss, layer by step heat maps on one\n"
                           "colour scale with the layers' onsets, stored spectra against Marchenko-Pastur\n"
                           "and the product null, findings, means over seeds, what differs between runs,\n"
                           "events. All it needs is inside: it opens in any browser, without a network. It\n"
                           "keeps at most 200 bins of steps; each plot has the query for all its rows. The\n"
                           "databases are only read.\n"
                           "\n"
                           "  -o, --output FILE   the page; one that is there is replaced\n"
                           "  --columns A,B,...   up to 8 columns of spectra for the heat maps\n"
                           "                      (docs/spectra.md); the default is effective_rank,\n"
                           "                      effective_rank_rest, stable_rank, outlier_energy, mp_gap,\n"
                           "                      null_gap, tw_score, top_overlap\n"
                           "  --form F            score (default) or channel\n"
                           "  --part P            full (default), content or rope\n"
                           "  --theta X           effect size of the findings; the default is 1.5\n"
                           "  --alpha A           level of their whole study; the default is 0.05\n"
                           "  --no-findings       judge nothing: less time and memory where runs are many\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O.\n";

/* names: cut into pieces. */
static status read_columns(char *names, report_request *r) {
    char *rest = NULL;
    for (char *name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest))
        TRY(report_add_column(r, name));
    return r->columns[0] ? STATUS_OK : status_fail(STATUS_USAGE, "--columns wants names, with commas between them");
}

static status read_options(int argc, char **argv, report_request *r, const char **output, bool *show_help) {
    static const struct option options[] = {
        {"output", required_argument, NULL, 'o'}, {"columns", required_argument, NULL, 'c'},
        {"form", required_argument, NULL, 'f'},   {"part", required_argument, NULL, 'p'},
        {"no-findings", no_argument, NULL, 'n'},  FINDINGS_ARGUMENTS,
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":ho:", options, NULL)) != -1;) {
        switch (option) {
        case 'o':
            if (*output) return status_fail(STATUS_USAGE, "one output: %s, or %s", *output, optarg);
            *output = optarg;
            break;
        case 'c':
            TRY(read_columns(optarg, r));
            break;
        case 'f':
            r->form = optarg;
            break;
        case 'p':
            r->part = optarg;
            break;
        case 'n':
            r->no_findings = true;
            break;
        case 'h':
            *show_help = true;
            return STATUS_OK;
        default:
            TRY(findings_arguments_take(&r->findings, argv, option));
        }
    }
    return STATUS_OK;
}

status cmd_report(int argc, char **argv) {
    report_request r = {.findings = findings_defaults};
    report_counts counts;
    const char *output = NULL;
    bool show_help = false;
    TRY(read_options(argc, argv, &r, &output, &show_help));
    if (show_help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    if (!output) return status_fail(STATUS_USAGE, "no output; name a file behind -o");
    if (optind == argc) return status_fail(STATUS_USAGE, "no database; name run.db files or run folders");
    TRY(report_write((const char *const *)argv + optind, argc - optind, &r, output, &counts));
    printf("%s: %d run%s, %.1f kB\n", output, counts.runs, counts.runs == 1 ? "" : "s", (double)counts.bytes / 1000);
    return STATUS_OK;
}
