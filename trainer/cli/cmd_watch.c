/* bulkhead watch: a run while it goes on. */
#include "trainer/cli/command.h"
#include "trainer/watch.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const char help[] = "usage: bulkhead watch RUN [OPTION...]\n"
                           "\n"
                           "Shows a run while it goes on, or afterwards: progress, loss, tokens/s, a layer\n"
                           "by step map of a column of its spectra (median over heads), how far the\n"
                           "diagnostics ranks are behind, the last events. RUN is its folder or run.db,\n"
                           "which may not be there yet; it is only read. Where the terminal cannot be drawn\n"
                           "on, and in a pipe, a line each time, until the run has ended.\n"
                           "\n"
                           "  --column NAME  the map's column (docs/spectra.md); default effective_rank\n"
                           "  --every S      seconds from one look to the next (default 2)\n"
                           "  --once         one line, and no waiting\n"
                           "  --json         with --once: all that is shown, for programs\n"
                           "\n"
                           "Keys: q quits, arrows or c take another column, p pauses. NO_COLOR turns\n"
                           "colours off.\n"
                           "\n"
                           "Exit codes: 0 done, 64 usage, 65 bad data, 66 no input, 74 I/O.\n";

typedef struct arguments {
    watch_options view;
    bool once, json, help;
} arguments;

static status read_arguments(arguments *a, int argc, char **argv) {
    static const struct option options[] = {
        {"column", required_argument, NULL, 'c'}, {"every", required_argument, NULL, 'e'},
        {"once", no_argument, NULL, 'o'},         {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    *a = (arguments){.view.every_s = 2};
    TRY(glance_find_column("effective_rank", &a->view.column));
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        switch (option) {
        case 'c':
            TRY(glance_find_column(optarg, &a->view.column));
            break;
        case 'e':
            TRY(command_read_real("every", optarg, 0.1, 86400, &a->view.every_s));
            break;
        case 'o':
            a->once = true;
            break;
        case 'j':
            a->json = true;
            break;
        case 'h':
            a->help = true;
            return STATUS_OK;
        default:
            return command_bad_option(argv, option);
        }
    }
    if (optind + 1 != argc)
        return status_fail(STATUS_USAGE, "one run folder or run.db is wanted, %d given", argc - optind);
    if (a->json && !a->once) return status_fail(STATUS_USAGE, "--json goes with --once");
    a->view.path = argv[optind];
    return STATUS_OK;
}

static status print_json(const glance *g) {
    json_t *j = glance_json(g);
    if (!j) return status_fail(STATUS_INTERNAL, "out of memory");
    json_dumpf(j, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
    json_decref(j);
    fputc('\n', stdout);
    return STATUS_OK;
}

static status print_line(const glance *g) {
    watch_print_line(g, stdout);
    fputc('\n', stdout);
    return fflush(stdout) == 0 ? STATUS_OK : status_fail(STATUS_IO, "the line cannot be written");
}

static status print_once(const arguments *a) {
    glance g;
    status s = glance_read(a->view.path, glance_column(a->view.column), &g);
    if (s == STATUS_OK) s = a->json ? print_json(&g) : print_line(&g);
    glance_free(&g);
    return s;
}

static void wait_s(double seconds) {
    const struct timespec t = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&t, NULL);
}

/* A line each time until the run has ended. What is missing or held by others is waited for, and said once. */
static status print_lines(const arguments *a) {
    char last[400] = "";
    for (;;) {
        glance g;
        status s = glance_read(a->view.path, glance_column(a->view.column), &g);
        bool ended = glance_has_ended(&g);
        if (s == STATUS_OK) s = print_line(&g);
        glance_free(&g);
        if (s == STATUS_OK && ended) return s;
        if (s != STATUS_OK && s != STATUS_NO_INPUT && s != STATUS_IO) return s;
        if (s != STATUS_OK && strcmp(last, status_message()) != 0) {
            snprintf(last, sizeof last, "%s", status_message());
            fprintf(stderr, "bulkhead watch: waiting: %s\n", last);
        }
        status_clear();
        wait_s(a->view.every_s);
    }
}

status cmd_watch(int argc, char **argv) {
    arguments a;
    bool drawn;
    TRY(read_arguments(&a, argc, argv));
    if (a.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    if (a.once) return print_once(&a);
    status s = watch_live(&a.view, &drawn);
    return drawn ? s : print_lines(&a);
}
