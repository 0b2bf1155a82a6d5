/* Words of command lines that are printed for a shell. */
#pragma once

#include <stdio.h>

/* The word as a shell reads it back: in quotes where it holds anything but plain characters. */
void shell_print_word(FILE *out, const char *word);
