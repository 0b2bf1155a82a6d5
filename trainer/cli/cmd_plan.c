/* bulkhead plan: what a run will need; starts nothing. */
#include "trainer/cli/command.h"
#include "trainer/cli/config_arguments.h"
#include "trainer/plan.h"
#include "trainer/vocab.h"

#include <stdio.h>
#include <string.h>

static const char help[] =
    "usage: bulkhead plan CONFIG [--set section.key=value ...]\n"
    "\n"
    "Prints parameters, memory, communication a step, disk and the launch lines of a run. Starts nothing.\n";

/* "CONFIG --set a.b=c ...", words quoted for a shell; cut short where it would not fit. */
static void train_arguments(char *out, size_t bytes, const config_arguments *a) {
    size_t used = (size_t)snprintf(out, bytes, "%s", a->path);
    for (int i = 0; i < a->setting_count && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used,
                                 strpbrk(a->settings[i], " *?[]{}$;&|<>\"\\") ? " --set '%s'" : " --set %s",
                                 a->settings[i]);
}

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
    if (s == STATUS_OK) {
        char text[8192];
        train_arguments(text, sizeof text, &arguments);
        plan_print(&p, &c, text);
    }
    config_free(&c);
    return s;
}
