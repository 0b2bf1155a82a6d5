/* The picture on a terminal by ncurses, and what keys and signals do. */
#include "core/clock.h"
#include "trainer/watch.h"

#include <curses.h>
#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The map's scale from low to high, of xterm's 256 colours: darker to lighter, told apart without red and green. */
static const short scale[WATCH_LEVELS] = {53, 54, 60, 61, 25, 31, 30, 36, 71, 107, 185, 227};

enum { KEY_WAIT_MS = 100 };

static volatile sig_atomic_t asked;

static void take(int number) {
    asked = number;
}

typedef struct view {
    const watch_options *o;
    glance g;
    bool has_glance, colours, utf8, paused, quits;
    int column;
    double next_s;
    char trouble[400];
} view;

/* ---------------------------------------------------------------- the run */

/* What cannot be read now leaves the last picture and says why; a missing run is waited for. */
static status read_again(view *v) {
    glance g;
    status s = glance_read(v->o->path, glance_column(v->column), &g);
    v->trouble[0] = '\0';
    if (s == STATUS_OK) {
        glance_free(&v->g);
        v->g = g;
        v->has_glance = true;
        return s;
    }
    glance_free(&g);
    if (s == STATUS_DATA && !v->has_glance) return s;
    if (s != STATUS_NO_INPUT || v->has_glance) snprintf(v->trouble, sizeof v->trouble, "%s", status_message());
    status_clear();
    return STATUS_OK;
}

/* ---------------------------------------------------------------- drawing */

static void blit(const view *v, const watch_frame *f) {
    for (int row = 0; row < f->rows; row++) {
        move(row, 0);
        for (int i = 0; i < f->columns; i++) {
            const watch_cell *c = &f->cells[row * f->columns + i];
            attr_set(c->strong ? A_BOLD : A_NORMAL, c->level >= 0 && v->colours ? (short)(c->level + 1) : 0, NULL);
            addstr(c->glyph);
        }
    }
    refresh();
}

static status draw(const view *v) {
    watch_frame f;
    char clock_text[16];
    time_t now = time(NULL);
    struct tm local;
    strftime(clock_text, sizeof clock_text, "%H:%M:%S", localtime_r(&now, &local));
    const watch_look look = {.utf8 = v->utf8,
                             .colours = v->colours,
                             .paused = v->paused,
                             .path = v->o->path,
                             .trouble = v->trouble[0] ? v->trouble : NULL,
                             .clock = clock_text};
    TRY(watch_frame_open(&f, LINES, COLS));
    watch_draw(&f, v->has_glance ? &v->g : NULL, &look);
    blit(v, &f);
    watch_frame_free(&f);
    return STATUS_OK;
}

/* ---------------------------------------------------------------- keys */

static void turn_column(view *v, int by) {
    int count = 0;
    while (glance_column(count)) count++;
    v->column = (v->column + by + count) % count;
    v->next_s = 0;
}

/* Whether there is something to draw anew. */
static bool take_key(view *v, int key) {
    switch (key) {
    case 'q':
    case 'Q':
        v->quits = true;
        return false;
    case 'p':
    case 'P':
        v->paused = !v->paused;
        v->next_s = 0;
        return true;
    case 'c':
    case KEY_RIGHT:
    case KEY_DOWN:
        turn_column(v, 1);
        return true;
    case KEY_LEFT:
    case KEY_UP:
        turn_column(v, -1);
        return true;
    case KEY_RESIZE:
        erase();
        return true;
    default:
        return false;
    }
}

/* A paused view still follows keys that want another picture of the run. */
static status go(view *v) {
    bool anew = true;
    while (!v->quits && !asked) {
        bool due = v->next_s == 0 || (!v->paused && clock_now_s() >= v->next_s);
        if (due) {
            TRY(read_again(v));
            v->next_s = clock_now_s() + v->o->every_s;
        }
        if (due || anew) TRY(draw(v));
        anew = take_key(v, getch());
    }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- the terminal */

static bool wants_no_colour(void) {
    const char *no = getenv("NO_COLOR");
    return no && no[0];
}

static bool open_colours(void) {
    if (wants_no_colour() || !has_colors() || start_color() != OK || COLORS < 256 || COLOR_PAIRS <= WATCH_LEVELS)
        return false;
    use_default_colors();
    for (short i = 0; i < WATCH_LEVELS; i++)
        if (init_pair((short)(i + 1), COLOR_WHITE, scale[i]) != OK) return false;
    return true;
}

static void catch_signals(void (*handler)(int)) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction action = {.sa_handler = handler}; /* no SA_RESTART: getch ends */
        sigemptyset(&action.sa_mask);
        sigaction(numbers[i], &action, NULL);
    }
}

static bool can_draw(void) {
    const char *kind = getenv("TERM");
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && kind && kind[0] && strcmp(kind, "dumb") != 0;
}

status watch_live(const watch_options *o, bool *able) {
    *able = false;
    if (!can_draw()) return STATUS_OK;
    setlocale(LC_CTYPE, "");
    SCREEN *screen = newterm(NULL, stdout, stdin);
    if (!screen) return STATUS_OK;
    *able = true;
    view v = {.o = o, .column = o->column, .utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0};
    catch_signals(take);
    v.colours = open_colours();
    cbreak();
    noecho();
    keypad(stdscr, TRUE);
    curs_set(0);
    timeout(KEY_WAIT_MS);
    status result = go(&v);
    endwin();
    delscreen(screen);
    glance_free(&v.g);
    catch_signals(SIG_DFL);
    if (asked) raise(asked);
    return result;
}
