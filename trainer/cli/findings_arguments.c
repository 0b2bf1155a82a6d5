#include "trainer/cli/findings_arguments.h"

#include "trainer/cli/command.h"

static const double LEAST_THETA = 1.0001, MOST_THETA = 1e6, LEAST_ALPHA = 1e-6, MOST_ALPHA = 0.999;

status findings_arguments_take(findings_request *out, char **argv, int option) {
    switch (option) {
    case 't':
        out->theta_given = true;
        return command_read_real("theta", optarg, LEAST_THETA, MOST_THETA, &out->theta);
    case 'a':
        return command_read_real("alpha", optarg, LEAST_ALPHA, MOST_ALPHA, &out->alpha);
    default:
        return command_bad_option(argv, option);
    }
}
