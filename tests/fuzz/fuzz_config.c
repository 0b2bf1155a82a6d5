/* A configuration in YAML: what is accepted can be written and is read back as the same. */
#include "input.h"

#include "core/config.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    config c, again;
    status got = config_load(&c, input_file(data, bytes), NULL, 0);
    if (got != STATUS_OK) {
        check_refusal(got, STATUS_CONFIG);
        return 0;
    }
    char *yaml = config_to_yaml(&c);
    if (!yaml) FINDING("an accepted configuration has no text");
    if (config_load(&again, input_file((const uint8_t *)yaml, strlen(yaml)), NULL, 0) != STATUS_OK)
        FINDING("refused what it wrote:\n%s", yaml);
    char *second = config_to_yaml(&again);
    if (!second || strcmp(yaml, second) != 0) FINDING("%s\nbecame\n%s", yaml, second);
    free(yaml);
    free(second);
    config_free(&c);
    config_free(&again);
    return 0;
}
