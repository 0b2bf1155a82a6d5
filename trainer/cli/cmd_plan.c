/* bulkhead plan: what a run will need; starts nothing. */
#include "trainer/cli/command.h"
#include "trainer/cli/config_arguments.h"
#include "trainer/plan.h"
#include "trainer/vocab.h"

#include <stdio.h>

static const char help[] =
    "usage: bulkhead plan CONFIG [--set section.key=value ...]\n"
    "\n"
    "Prints parameters, memory, communication a step, disk and the launch lines of a run. Starts nothing.\n";

status cmd_plan(int argc, char **argv) {
    config_arguments arguments;
    TRY(config_arguments_parse(&arguments, argc, argv));
    if (arguments.help) {
        fputs(help, stdout);
        return STATUS_OK;
    }
    config c;
    plan p;
    dataset_info info;
    TRY(config_load(&c, arguments.path, arguments.settings, arguments.setting_count));
    status s = vocab_resolve(&c, &info);
    if (s == STATUS_OK) s = plan_make(&p, &c);
    if (s == STATUS_OK) plan_print(&p, &c, arguments.path);
    config_free(&c);
    return s;
}
