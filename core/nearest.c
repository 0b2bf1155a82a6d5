#include "core/nearest.h"

#include <limits.h>
#include <string.h>

int nearest_distance(const char *a, const char *b) {
    enum { LONGEST = 32 };
    int row[LONGEST + 1], n = (int)strlen(a), m = (int)strlen(b);
    if (n > LONGEST || m > LONGEST) return INT_MAX;
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

const char *nearest_word(const char *const *words, const char *word) {
    const char *best = words[0];
    int least = INT_MAX;
    for (; *words; words++) {
        int distance = nearest_distance(word, *words);
        if (distance < least) least = distance, best = *words;
    }
    return best;
}
