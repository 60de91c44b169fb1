// SPDX-License-Identifier: GPL-2.0-only
//
// Random sequences of commands from six nexuses, against a model that knows each nexus's key and
// the holder in plain arrays, and says by itself what the answer, the state and the notices have to
// be.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/reservation.h"

enum { NEXUSES = 6, ROUNDS = 300000 };

static const char *const NAMES[3] = {
    "iqn.2026-01.test:a,i,0x000000000001",
    "iqn.2026-01.test:b,i,0x000000000002",
    "iqn.2026-01.test:c,i,0x000000000003",
};
static const struct reservation_ports PORTS = {{1, 2}, 2};

struct model {
    uint64_t key[NEXUSES]; // 0: not registered
    int type;
    int holder; // -1: nobody, or all
    uint32_t generation;
};

// Nexus n is initiator n % 3 by port 1 + n / 3.
static struct reservation_nexus nexus_of(int n) {
    return (struct reservation_nexus){NAMES[n % 3], 1U + (uint32_t)(n / 3)};
}

static uint64_t seed = 0x9e3779b97f4a7c15ULL;

static unsigned below(unsigned limit) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (unsigned)(seed % limit);
}

static bool everybody(int type) {
    return type == 7 || type == 8;
}

static bool valid_type(int type) {
    return type == 1 || type == 3 || (type >= 5 && type <= 8);
}

static bool holds(const struct model *m, int n) {
    return m->type != 0 && m->key[n] != 0 && (everybody(m->type) || m->holder == n);
}

static void drop(struct model *m, int n) {
    m->key[n] = 0;
    int left = 0;
    for (int i = 0; i < NEXUSES; i++)
        left += m->key[i] != 0;
    if (m->holder == n || left == 0) {
        m->type = 0;
        m->holder = -1;
    }
}

static int model_register(struct model *m, int n, const struct reservation_request *r) {
    if (r->action == PR_REGISTER && r->key != m->key[n])
        return SAM_RESERVATION_CONFLICT;
    if (m->key[n] == 0 && r->action_key == 0)
        return SAM_GOOD;
    m->generation++;
    for (int i = n % 3; i < NEXUSES; i += 3) {
        if (i != n && !r->all_target_ports)
            continue;
        if (r->action_key != 0)
            m->key[i] = r->action_key;
        else if (m->key[i] != 0)
            drop(m, i);
    }
    return SAM_GOOD;
}

static int model_preempt(struct model *m, int n, const struct reservation_request *r) {
    bool takes = m->type != 0 &&
                 (everybody(m->type) ? r->action_key == 0 : m->key[m->holder] == r->action_key);
    if (!takes && r->action_key == 0)
        return SAM_CHECK_CONDITION;
    if (takes && !valid_type(r->type))
        return SAM_CHECK_CONDITION;
    int removed = 0;
    bool all = takes && everybody(m->type);
    for (int i = 0; i < NEXUSES; i++) {
        if (m->key[i] == 0 || (takes && i == n) || !(all || m->key[i] == r->action_key))
            continue;
        drop(m, i);
        removed++;
    }
    if (!takes && removed == 0)
        return SAM_RESERVATION_CONFLICT;
    m->generation++;
    if (takes) {
        m->type = r->type;
        m->holder = everybody(r->type) ? -1 : n;
    }
    return SAM_GOOD;
}

static int model_out(struct model *m, int n, const struct reservation_request *r) {
    if (r->action == PR_REGISTER || r->action == PR_REGISTER_AND_IGNORE)
        return model_register(m, n, r);
    if (m->key[n] == 0 || m->key[n] != r->key)
        return SAM_RESERVATION_CONFLICT;
    switch (r->action) {
    case PR_RESERVE:
        if (!valid_type(r->type))
            return SAM_CHECK_CONDITION;
        if (m->type != 0)
            return holds(m, n) && m->type == r->type ? SAM_GOOD : SAM_RESERVATION_CONFLICT;
        m->type = r->type;
        m->holder = everybody(r->type) ? -1 : n;
        return SAM_GOOD;
    case PR_RELEASE:
        if (!holds(m, n))
            return SAM_GOOD;
        if (m->type != r->type)
            return SAM_CHECK_CONDITION;
        m->type = 0;
        m->holder = -1;
        return SAM_GOOD;
    case PR_CLEAR:
        memset(m->key, 0, sizeof(m->key));
        m->type = 0;
        m->holder = -1;
        m->generation++;
        return SAM_GOOD;
    default:
        return model_preempt(m, n, r);
    }
}

static unsigned model_notice(const struct model *before, const struct model *after, int n,
                             int actor, const struct reservation_request *r) {
    if (n == actor || before->key[n] == 0)
        return 0;
    bool preempt = r->action == PR_PREEMPT || r->action == PR_PREEMPT_AND_ABORT;
    if (after->key[n] == 0) {
        if (r->action == PR_CLEAR)
            return 0x2a03;
        return preempt ? 0x2a05 : 0;
    }
    if (before->type == 0 || before->type == after->type)
        return 0;
    return preempt || before->type >= 5 ? 0x2a04 : 0;
}

static void same(const struct model *m, const reservation_state *state) {
    unsigned registered = 0;
    for (int n = 0; n < NEXUSES; n++) {
        registered += m->key[n] != 0;
        struct reservation_nexus nexus = nexus_of(n);
        for (unsigned i = 0; i < state->registrations_count; i++) {
            const copygate_iscsi_Registration *one = &state->registrations[i];
            if (strcmp(one->initiator_port, nexus.initiator_port) == 0 &&
                one->target_port == nexus.target_port) {
                assert_int_equal(one->key, m->key[n]);
                assert_int_equal(one->holder, m->holder == n);
            }
        }
        // What matters in the end: who may write and who may read.
        bool free_access = m->type == 0 || holds(m, n) || (m->key[n] != 0 && m->type >= 5);
        bool exclusive = m->type == 3 || m->type == 6 || m->type == 8;
        static const uint8_t write_cdb[16] = {0x8a};
        static const uint8_t read_cdb[16] = {0x88};
        assert_int_equal(reservation_allows(state, &nexus, write_cdb), free_access);
        assert_int_equal(reservation_allows(state, &nexus, read_cdb), free_access || !exclusive);
    }
    assert_int_equal(state->registrations_count, registered);
    assert_int_equal(state->type, m->type);
    assert_int_equal(state->generation, m->generation);
}

static void same_notices(const reservation_state *before_state, const reservation_state *state,
                         const struct model *before, const struct model *after, int actor,
                         const struct reservation_request *r) {
    static struct reservation_notice notices[RESERVATION_REGISTRATIONS_MAX];
    unsigned count = reservation_notices(before_state, state, notices);
    unsigned expected = 0;
    for (int n = 0; n < NEXUSES; n++) {
        unsigned asc = model_notice(before, after, n, actor, r);
        if (asc == 0)
            continue;
        expected++;
        struct reservation_nexus nexus = nexus_of(n);
        bool found = false;
        for (unsigned i = 0; i < count; i++) {
            if (strcmp(notices[i].initiator_port, nexus.initiator_port) != 0 ||
                notices[i].target_port != nexus.target_port)
                continue;
            found = true;
            assert_int_equal(notices[i].code, asc);
            assert_int_equal(notices[i].abort, asc == 0x2a05 && r->action == PR_PREEMPT_AND_ABORT);
        }
        assert_true(found);
    }
    assert_int_equal(count, expected);
}

static void random_sequences_do_as_the_model_says(void **unused) {
    (void)unused;
    static reservation_state state;
    static reservation_state before_state;
    struct model model = {.holder = -1};
    memset(&state, 0, sizeof(state));
    unsigned answers[3] = {0};
    for (unsigned round = 0; round < ROUNDS; round++) {
        int n = (int)below(NEXUSES);
        static const uint8_t types[] = {1, 3, 5, 6, 7, 8, 1, 5, 0, 2};
        struct reservation_request r = {
            .action = (uint8_t)below(7),
            .type = types[below(sizeof(types))],
            // The right key mostly, so that something happens.
            .key = below(8) != 0 ? model.key[n] : below(4),
            .action_key = below(4),
            .all_target_ports = below(4) == 0,
        };
        // Rarely, since it ends everything that came before.
        if (r.action == PR_CLEAR && below(4) != 0)
            continue;
        struct model before = model;
        before_state = state;
        struct reservation_nexus nexus = nexus_of(n);
        struct bs_status outcome = reservation_out(&state, &nexus, &r, &PORTS);
        int expected = model_out(&model, n, &r);
        assert_int_equal(outcome.status, expected);
        answers[expected == SAM_GOOD ? 0 : expected == SAM_CHECK_CONDITION ? 1 : 2]++;
        assert_true(reservation_valid(&state));
        if (outcome.status == SAM_GOOD) {
            same(&model, &state);
            same_notices(&before_state, &state, &before, &model, n, &r);
        } else {
            assert_memory_equal(&before_state, &state, sizeof(state));
            model = before;
        }
    }
    // The sequences are worth something only if each answer is common.
    for (unsigned i = 0; i < 3; i++)
        assert_true(answers[i] > ROUNDS / 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_sequences_do_as_the_model_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
