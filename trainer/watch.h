/* The picture of a run that goes on: what stands where on a terminal of any size. Nothing here knows a terminal. */
#pragma once

#include "diag/glance.h"

enum { WATCH_LEVELS = 12, WATCH_GLYPH_BYTES = 5 };

typedef struct watch_cell {
    char glyph[WATCH_GLYPH_BYTES]; /* one character, UTF-8; never empty */
    signed char level;             /* 0 ... WATCH_LEVELS - 1: on that colour of the map's scale; -1: plain */
    bool strong;
} watch_cell;

typedef struct watch_frame {
    int rows, columns;
    watch_cell *cells; /* [rows, columns] */
} watch_frame;

typedef struct watch_look {
    bool utf8;    /* else ASCII alone */
    bool colours; /* else the map's levels are characters */
    bool paused;
    const char *path;    /* of the run */
    const char *trouble; /* why there is nothing newer; NULL: nothing is wrong */
    const char *clock;
} watch_look;

/* Blank; IO-free. INTERNAL: out of memory. Free it with watch_frame_free. */
status watch_frame_open(watch_frame *f, int rows, int columns);
void watch_frame_free(watch_frame *f);

/* Fills the whole frame. g: NULL where the run cannot be read yet. What has no room is left out, the last first. */
void watch_draw(watch_frame *f, const glance *g, const watch_look *look);

/* The run in one line, without a new line at its end. */
void watch_print_line(const glance *g, FILE *out);

/* "12 s", "3 min 5 s", "2 h 10 min", "4 d 3 h"; "?" for NaN. */
void watch_duration(double seconds, char text[32]);

typedef struct watch_options {
    const char *path;
    int column; /* glance_column's index */
    double every_s;
} watch_options;

/* The live view on the terminal that stdin and stdout are, until the person quits or a signal ends the program; the
 * terminal is as it was then. NO_COLOR is honoured. *able: false where it is no terminal that can be drawn on: then
 * nothing is done. DATA when the file is no run's database. */
status watch_live(const watch_options *o, bool *able);
