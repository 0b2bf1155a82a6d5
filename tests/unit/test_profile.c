/* The phases of a queue, over a table whose clock is the test's: what belongs to which, and when marks are read. */
#include "check.h"

#include "core/ops/profile.h"

typedef struct clock {
    double now;
    int marks, reads, released;
    char names[512];
} clock_state;

static clock_state state_of_clock;

static void fake_mark(ops *o, ops_mark *m, const char *name) {
    m->s = state_of_clock.now;
    state_of_clock.marks++;
    size_t used = strlen(state_of_clock.names);
    snprintf(state_of_clock.names + used, sizeof state_of_clock.names - used, "%s,", name ? name : "end");
}

static double fake_span_s(ops *o, const ops_mark *from, const ops_mark *to) {
    state_of_clock.reads++;
    return to->s - from->s;
}

static void fake_release(ops *o, ops_mark *m) {
    state_of_clock.released++;
}

static ops open_table(void) {
    state_of_clock = (clock_state){0};
    return (ops){.mark = fake_mark, .mark_span_s = fake_span_s, .mark_release = fake_release};
}

/* Lets time go by. */
static void pass(double seconds) {
    state_of_clock.now += seconds;
}

static double seconds_of(const profile *p) {
    double sum = 0;
    for (int i = 0; i < PROFILE_PHASES; i++) sum += p->work[i].seconds;
    return sum;
}

/* A step of 100 s: idle 1, mlp 2, a collective in it 4, mlp 8, attention 16, idle 69. */
static void one_step(ops *o, profile *p) {
    profile_begin(p);
    pass(1);
    profile_enter(p, PROFILE_MLP);
    o->flops += 10;
    pass(2);
    profile_phase before = profile_enter(p, PROFILE_COLLECTIVE);
    assert_int_equal(before, PROFILE_MLP);
    profile_bytes(p, 1000);
    pass(4);
    profile_enter(p, before);
    profile_enter(p, PROFILE_MLP); /* the same again: no mark */
    o->flops += 5;
    pass(8);
    profile_enter(p, PROFILE_ATTENTION);
    o->attention_flops += 7;
    pass(16);
    profile_enter(p, PROFILE_IDLE);
    pass(69);
    profile_end(p);
}

static void check_steps(const profile *p, int steps) {
    check_near(p->work[PROFILE_MLP].seconds, 10 * steps, 0);
    check_near(p->work[PROFILE_COLLECTIVE].seconds, 4 * steps, 0);
    check_near(p->work[PROFILE_ATTENTION].seconds, 16 * steps, 0);
    check_near(p->work[PROFILE_IDLE].seconds, 70 * steps, 0);
    check_near(seconds_of(p), 100 * steps, 0);
}

static void phases_fill_the_step(void **state) {
    ops o = open_table();
    profile p;
    profile_open(&p, &o);
    for (int i = 0; i < 3; i++) {
        one_step(&o, &p);
        pass(1000); /* between two steps: nobody's */
    }
    assert_string_equal(state_of_clock.names, "idle,mlp,collective,mlp,attention,idle,end,"
                                              "idle,mlp,collective,mlp,attention,idle,end,"
                                              "idle,mlp,collective,mlp,attention,idle,end,");
    profile_finish(&p);
    check_steps(&p, 3);
    assert_int_equal(p.steps, 3);
    check_near(p.work[PROFILE_MLP].flops, 45, 0);
    check_near(p.work[PROFILE_ATTENTION].flops, 21, 0);
    check_near(p.work[PROFILE_COLLECTIVE].flops, 0, 0);
    check_near(p.work[PROFILE_COLLECTIVE].bytes, 3000, 0);
    profile_close(&p);
}

/* A device may be behind its host by a step: only what is older is read. */
static void marks_are_read_a_step_later(void **state) {
    ops o = open_table();
    profile p;
    profile_open(&p, &o);
    one_step(&o, &p);
    assert_int_equal(state_of_clock.reads, 0);
    one_step(&o, &p);
    check_steps(&p, 1);
    profile_finish(&p);
    check_steps(&p, 2);
    assert_int_equal(state_of_clock.reads, 2 * 6);
    profile_close(&p);
    assert_true(state_of_clock.released >= 2 * 7);
}

static void a_pause_is_not_of_the_step(void **state) {
    ops o = open_table();
    profile p;
    profile_open(&p, &o);
    profile_begin(&p);
    profile_enter(&p, PROFILE_OPTIMIZER);
    pass(1);
    profile_pause(&p);
    assert_false(profile_looks(&p));
    profile_phase before = profile_enter(&p, PROFILE_MLP);
    profile_bytes(&p, 50);
    o.flops += 99;
    pass(30);
    profile_enter(&p, before);
    profile_resume(&p);
    assert_true(profile_looks(&p));
    pass(5);
    profile_end(&p);
    profile_finish(&p);
    check_near(p.work[PROFILE_OPTIMIZER].seconds, 1, 0);
    check_near(p.work[PROFILE_IDLE].seconds, 5, 0);
    check_near(p.work[PROFILE_APART].seconds, 30, 0);
    check_near(p.work[PROFILE_APART].flops, 99, 0);
    check_near(p.work[PROFILE_MLP].seconds + p.work[PROFILE_MLP].flops + p.work[PROFILE_MLP].bytes, 0, 0);
    profile_close(&p);
}

/* More marks than there is room for at first, in steps of different lengths. */
static void a_step_may_have_many_marks(void **state) {
    ops o = open_table();
    profile p;
    profile_open(&p, &o);
    for (int count = 10; count <= 10000; count *= 10) {
        profile_begin(&p);
        for (int i = 0; i < count; i++) {
            profile_enter(&p, i % 2 ? PROFILE_HEAD : PROFILE_SNAPSHOT);
            pass(i % 2 ? 2 : 1);
        }
        profile_end(&p);
    }
    profile_finish(&p);
    check_near(p.work[PROFILE_HEAD].seconds, 2 * 5555, 0);
    check_near(p.work[PROFILE_SNAPSHOT].seconds, 5555, 0);
    profile_close(&p);
}

static void without_a_profile_nothing_is_marked(void **state) {
    ops o = open_table();
    assert_int_equal(profile_enter(o.profile, PROFILE_MLP), PROFILE_MLP);
    profile_bytes(o.profile, 1);
    assert_false(profile_looks(o.profile));
    assert_int_equal(state_of_clock.marks, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(phases_fill_the_step),
    cmocka_unit_test(marks_are_read_a_step_later),
    cmocka_unit_test(a_pause_is_not_of_the_step),
    cmocka_unit_test(a_step_may_have_many_marks),
    cmocka_unit_test(without_a_profile_nothing_is_marked),
};

TEST_MAIN(tests)
