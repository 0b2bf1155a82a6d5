#include "trainer/sweep_gpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sweep_gpus_open(sweep_gpus *g, int devices, const char *visible) {
    *g = (sweep_gpus){0};
    while (g->count < devices && g->count < SWEEP_GPUS) {
        char number[16];
        snprintf(number, sizeof number, "%d", g->count);
        int length = visible ? (int)strcspn(visible, ",") : 0;
        char *name = length > 0 ? strndup(visible, (size_t)length) : strdup(number);
        if (!name) return;
        g->names[g->count++] = name;
        if (length > 0) visible += length + (visible[length] == ',');
    }
}

bool sweep_gpus_take(sweep_gpus *g, int need, char *list, size_t bytes) {
    int chosen[SWEEP_GPUS], found = 0;
    size_t used = 0;
    for (int i = 0; i < g->count && found < need; i++)
        if (!g->taken[i]) chosen[found++] = i;
    if (found < need) return false;
    list[0] = '\0';
    for (int i = 0; i < need; i++) {
        if (used + strlen(g->names[chosen[i]]) + 2 > bytes) return false;
        used += (size_t)sprintf(list + used, "%s%s", i ? "," : "", g->names[chosen[i]]);
    }
    for (int i = 0; i < need; i++) g->taken[chosen[i]] = true;
    return true;
}

/* Whether the name is one of the list's. */
static bool is_in(const char *list, const char *name) {
    size_t length = strlen(name);
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == length && strncmp(p, name, length) == 0) return true;
    return false;
}

void sweep_gpus_give(sweep_gpus *g, const char *list) {
    for (int i = 0; i < g->count; i++)
        if (is_in(list, g->names[i])) g->taken[i] = false;
}

void sweep_gpus_close(sweep_gpus *g) {
    for (int i = 0; i < g->count; i++) free(g->names[i]);
    g->count = 0;
}
