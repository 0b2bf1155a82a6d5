/* bulkhead query: asks run databases, read-only. */
#include "diag/query.h"
#include "trainer/cli/command.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_help(void) {
    fputs("usage: bulkhead query DB... QUESTION [OPTION...]\n"
          "       bulkhead query DB... --sql TEXT [--csv | --json]\n"
          "\n"
          "Asks the databases of runs (run.db files or run folders); nothing is written.\n"
          "Several are asked in turn; a first column then says where a row is from.\n"
          "\n"
          "questions:\n",
          stdout);
    for (int i = 0; query_question_name(i); i++) printf("  %-8s  %s\n", query_question_name(i), query_question_help(i));
    fputs("\n"
          "  --form F       score (default) or channel\n"
          "  --part P       full (default), content or rope\n"
          "  --stat S       median (default) or max over the heads, or layer as a whole\n"
          "  --layer N      this layer only\n"
          "  --step N       this step; the default is the last snapshot\n"
          "  --sql TEXT     one SELECT; docs/queries.md has tables, views and examples\n"
          "  --csv, --json  for programs\n"
          "\n"
          "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O.\n",
          stdout);
}

static bool is_question(const char *word) {
    for (int i = 0; query_question_name(i); i++)
        if (strcmp(query_question_name(i), word) == 0) return true;
    return false;
}

/* The options; what is left in argv from optind on are databases and the question. */
static status read_options(int argc, char **argv, query_request *r, bool *help) {
    static const struct option options[] = {
        {"form", required_argument, NULL, 'f'}, {"part", required_argument, NULL, 'p'},
        {"stat", required_argument, NULL, 's'}, {"layer", required_argument, NULL, 'l'},
        {"step", required_argument, NULL, 't'}, {"sql", required_argument, NULL, 'q'},
        {"csv", no_argument, NULL, 'c'},        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},       {NULL, 0, NULL, 0}};
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 'f':
            r->form = optarg;
            break;
        case 'p':
            r->part = optarg;
            break;
        case 's':
            r->stat = optarg;
            break;
        case 'l':
            TRY(command_read_number("layer", optarg, 0, INT64_MAX, &r->layer));
            break;
        case 't':
            TRY(command_read_number("step", optarg, 0, INT64_MAX, &r->step));
            break;
        case 'q':
            r->sql = optarg;
            break;
        case 'c':
            r->format = TABLE_CSV;
            break;
        case 'j':
            r->format = TABLE_JSON;
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

/* Sorts the words into databases and the question. */
static status read_words(char **words, int count, query_request *r, const char **databases, int *found) {
    for (int i = 0; i < count; i++) {
        bool there = access(words[i], F_OK) == 0;
        if (!is_question(words[i]) || (there && (r->sql || r->question))) {
            databases[(*found)++] = words[i];
            continue;
        }
        if (r->sql || r->question)
            return status_fail(STATUS_USAGE, "one question at a time: %s, or %s", r->question ? r->question : "--sql",
                               words[i]);
        r->question = words[i];
    }
    if (*found > 0 && !r->sql && !r->question) {
        const char *last = databases[*found - 1];
        if (access(last, F_OK) == 0)
            return status_fail(STATUS_USAGE, "no question; `bulkhead query --help` lists them");
        return status_fail(STATUS_USAGE,
                           "%s is neither a question nor a database; `bulkhead query --help` lists the "
                           "questions",
                           last);
    }
    if (*found == 0) return status_fail(STATUS_USAGE, "no database; name a run.db or a run folder");
    return STATUS_OK;
}

status cmd_query(int argc, char **argv) {
    query_request r = {.layer = -1, .step = -1};
    bool help = false;
    TRY(read_options(argc, argv, &r, &help));
    if (help) {
        print_help();
        return STATUS_OK;
    }
    const char **databases = calloc((size_t)argc + 1, sizeof(*databases));
    if (!databases) return status_fail(STATUS_INTERNAL, "out of memory");
    int count = 0;
    status s = read_words(argv + optind, argc - optind, &r, databases, &count);
    if (s == STATUS_OK) s = query_run(databases, count, &r, stdout);
    free(databases);
    return s;
}
