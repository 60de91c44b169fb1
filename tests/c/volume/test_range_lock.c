// SPDX-License-Identifier: BSD-3-Clause
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "volume/range_lock.h"

static void shared_ranges_overlap_and_exclusive_ones_do_not(void **state) {
    (void)state;
    struct cg_range_lock lock;
    struct cg_range a = {0}, b = {0}, c = {0}, d = {0};
    cg_range_lock_init(&lock);
    assert_true(cg_range_acquire(&lock, &a, 0, 10, false));
    assert_true(cg_range_acquire(&lock, &b, 5, 15, false));
    assert_false(cg_range_acquire(&lock, &c, 9, 12, true));
    assert_true(cg_range_acquire(&lock, &d, 15, 20, true));
    cg_range_release(&a);
    assert_null(cg_range_granted(&lock));
    cg_range_release(&b);
    assert_ptr_equal(cg_range_granted(&lock), &c);
    assert_null(cg_range_granted(&lock));
    cg_range_release(&c);
    cg_range_release(&d);
}

static void a_waiter_is_not_overtaken_by_a_later_conflicting_one(void **state) {
    (void)state;
    struct cg_range_lock lock;
    struct cg_range a = {0}, b = {0}, c = {0};
    cg_range_lock_init(&lock);
    assert_true(cg_range_acquire(&lock, &a, 0, 10, false));
    assert_false(cg_range_acquire(&lock, &b, 0, 10, true));
    assert_false(cg_range_acquire(&lock, &c, 0, 10, false));
    cg_range_release(&a);
    assert_ptr_equal(cg_range_granted(&lock), &b);
    assert_null(cg_range_granted(&lock));
    cg_range_release(&b);
    assert_ptr_equal(cg_range_granted(&lock), &c);
    cg_range_release(&c);
}

static void giving_up_lets_the_next_one_in(void **state) {
    (void)state;
    struct cg_range_lock lock;
    struct cg_range a = {0}, b = {0}, c = {0};
    cg_range_lock_init(&lock);
    assert_true(cg_range_acquire(&lock, &a, 0, 10, false));
    assert_false(cg_range_acquire(&lock, &b, 0, 10, true));
    assert_false(cg_range_acquire(&lock, &c, 0, 10, false));
    cg_range_release(&b);
    assert_ptr_equal(cg_range_granted(&lock), &c);
    cg_range_release(&a);
    cg_range_release(&c);
    cg_range_release(&c);
}

#define RANGES 24

// Whatever happens, no two held ranges conflict, and when all is released nobody is left waiting.
static void random_use_never_grants_a_conflict(void **state) {
    (void)state;
    srand(7);
    struct cg_range_lock lock;
    struct cg_range ranges[RANGES];
    memset(ranges, 0, sizeof(ranges));
    cg_range_lock_init(&lock);
    for (int step = 0; step < 200000; step++) {
        struct cg_range *one = &ranges[rand() % RANGES];
        if (one->state == CG_RANGE_IDLE) {
            uint64_t start = (uint64_t)(rand() % 50);
            cg_range_acquire(&lock, one, start, start + 1 + (uint64_t)(rand() % 10),
                             rand() % 2 == 0);
        } else {
            cg_range_release(one);
            while (cg_range_granted(&lock) != NULL) {
            }
        }
        bool waiting = false;
        bool held = false;
        for (int i = 0; i < RANGES; i++) {
            waiting = waiting || ranges[i].state == CG_RANGE_WAITING;
            held = held || ranges[i].state == CG_RANGE_HELD;
            for (int k = i + 1; k < RANGES; k++) {
                if (ranges[i].state == CG_RANGE_HELD && ranges[k].state == CG_RANGE_HELD &&
                    (ranges[i].exclusive || ranges[k].exclusive)) {
                    assert_true(ranges[i].end <= ranges[k].start ||
                                ranges[k].end <= ranges[i].start);
                }
            }
        }
        assert_true(held || !waiting);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_ranges_overlap_and_exclusive_ones_do_not),
        cmocka_unit_test(a_waiter_is_not_overtaken_by_a_later_conflicting_one),
        cmocka_unit_test(giving_up_lets_the_next_one_in),
        cmocka_unit_test(random_use_never_grants_a_conflict),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
