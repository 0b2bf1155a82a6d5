#include "core/shell.h"

#include <stdbool.h>
#include <string.h>

void shell_print_word(FILE *out, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./=,:@%+-";
    bool quoted = !word[0] || word[strspn(word, plain)];
    if (quoted) fputc('\'', out);
    for (; *word; word++) {
        if (*word == '\'')
            fputs("'\\''", out);
        else
            fputc(*word, out);
    }
    if (quoted) fputc('\'', out);
}
