// SPDX-License-Identifier: BSD-3-Clause
//
// The rules of raft, one by one.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "raft/log_terms.h"
#include "trio.h"

static struct trio trio;

static void elected(uint64_t id) {
    trio_init(&trio, NULL);
    trio_elect(&trio, id);
    trio_run(&trio, 20);
}

// ---- Terms

static void terms_are_kept_as_runs(void **state) {
    (void)state;
    struct log_run run[4];
    struct log_terms log;
    log_terms_init(&log, run, 4, 10, 3);
    assert_true(log_terms_append(&log, 3, 5)); // 11..15
    assert_true(log_terms_append(&log, 5, 1)); // 16
    assert_true(log_terms_append(&log, 7, 4)); // 17..20
    assert_int_equal(log_terms_at(&log, 9), 0);
    assert_int_equal(log_terms_at(&log, 10), 3);
    assert_int_equal(log_terms_at(&log, 15), 3);
    assert_int_equal(log_terms_at(&log, 16), 5);
    assert_int_equal(log_terms_at(&log, 20), 7);
    assert_int_equal(log_terms_at(&log, 21), 0);
    assert_int_equal(log_terms_not_above(&log, 19, 6), 16);
    assert_int_equal(log_terms_not_above(&log, 19, 4), 15);
    assert_int_equal(log_terms_not_above(&log, 19, 2), 10);
    assert_true(log_terms_append(&log, 8, 1));
    assert_false(log_terms_append(&log, 9, 1)); // no room for a fifth run
    log_terms_compact(&log, 16);
    assert_int_equal(log.count, 2);
    assert_int_equal(log_terms_at(&log, 16), 5);
    assert_true(log_terms_append(&log, 9, 1));
    log_terms_truncate(&log, 19);
    assert_int_equal(log.last_index, 18);
    assert_int_equal(log_terms_last(&log), 7);
    log_terms_compact(&log, 18);
    assert_int_equal(log.count, 0);
    assert_int_equal(log_terms_last(&log), 7);
}

// ---- Elections

static void a_group_elects_one_leader_and_commits_its_noop(void **state) {
    (void)state;
    trio_init(&trio, NULL);
    trio_run(&trio, 300);
    unsigned leaders = 0;
    for (uint64_t id = 1; id <= 3; id++) {
        leaders += trio_status(&trio, id).role == CG_RAFT_LEADER;
        assert_int_equal(trio_status(&trio, id).commit_index, 1);
    }
    assert_int_equal(leaders, 1);
    trio_destroy(&trio);
}

static void requests_for_votes_wait_for_the_candidates_own_disk(void **state) {
    (void)state;
    trio_init(&trio, NULL);
    trio_node(&trio, 1)->held = true;
    trio.now += 2 * TRIO_TIMEOUT;
    cg_raft_tick(trio_node(&trio, 1)->raft, trio.now);
    trio_drain(&trio, 1);
    trio_settle(&trio); // pre-votes need no disk
    assert_int_equal(trio_status(&trio, 1).role, CG_RAFT_CANDIDATE);
    assert_int_equal(trio_node(&trio, 1)->sent[CG_RAFT_VOTE], 2);
    assert_int_equal(trio_status(&trio, 2).term, 0);
    trio_release(&trio, 1);
    trio_settle(&trio);
    assert_int_equal(trio_status(&trio, 1).role, CG_RAFT_LEADER);
    trio_destroy(&trio);
}

static void a_vote_is_given_when_it_is_durable_and_only_once(void **state) {
    (void)state;
    trio_init(&trio, NULL);
    trio.now += 2 * TRIO_TIMEOUT;
    struct trio_node *voter = trio_node(&trio, 2);
    voter->held = true;
    struct cg_raft_message vote = {.type = CG_RAFT_VOTE, .from = 1, .to = 2, .term = 5};
    assert_int_equal(trio_receive(&trio, &vote), 0);
    vote.from = 3;
    assert_int_equal(trio_receive(&trio, &vote), 0);
    assert_int_equal(trio.flight_count, 0);
    trio_release(&trio, 2);
    assert_int_equal(trio.flight_count, 1);
    assert_int_equal(trio.flight[trio.flight_first].to, 1);
    assert_true(trio.flight[trio.flight_first].granted);
    assert_int_equal(voter->vote, 1);
    assert_int_equal(voter->term, 5);
    trio_destroy(&trio);
}

static void nobody_votes_while_a_leader_is_heard_unless_forced(void **state) {
    (void)state;
    elected(1);
    uint64_t term = trio_status(&trio, 2).term;
    struct cg_raft_message vote = {.type = CG_RAFT_VOTE,
                                   .from = 3,
                                   .to = 2,
                                   .term = term + 1,
                                   .last_index = 9,
                                   .last_term = term};
    assert_int_equal(trio_receive(&trio, &vote), 0);
    assert_int_equal(trio_status(&trio, 2).term, term);
    vote.forced = true;
    assert_int_equal(trio_receive(&trio, &vote), 0);
    assert_int_equal(trio_status(&trio, 2).term, term + 1);
    assert_int_equal(trio_status(&trio, 2).vote, 3);
    trio_destroy(&trio);
}

static void pre_votes_without_an_answer_are_repeated_soon_and_then_rarely(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 1)->cut = true;
    trio_node(&trio, 3)->cut = true;
    const uint32_t *sent = &trio_node(&trio, 2)->sent[CG_RAFT_VOTE];
    uint32_t before = *sent;
    while (*sent == before) {
        trio_run(&trio, 1);
    }
    trio_run(&trio, 2 * TRIO_HEARTBEAT / TRIO_MS);
    assert_in_range(*sent, before + 4, before + 6); // two voters
    before = *sent;
    trio_run(&trio, 10 * TRIO_TIMEOUT / TRIO_MS);
    assert_in_range(*sent, before + 10, before + 24);
    trio_destroy(&trio);
}

// The one that lacks entries cannot be elected, and its question tells that nobody leads.
static void whoever_is_asked_by_one_that_lacks_entries_campaigns(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 3)->cut = true;
    assert_int_equal(trio_propose(&trio, 1, 3), 0);
    trio_settle(&trio);
    trio_node(&trio, 1)->cut = true;
    trio_node(&trio, 3)->cut = false;
    trio.now += TRIO_TIMEOUT; // the least that a follower waits
    struct cg_raft_message vote = {.type = CG_RAFT_VOTE,
                                   .from = 3,
                                   .to = 2,
                                   .pre_vote = true,
                                   .term = trio_status(&trio, 3).term + 1,
                                   .last_index = 1,
                                   .last_term = 1};
    assert_int_equal(trio_receive(&trio, &vote), 0);
    assert_int_equal(trio_status(&trio, 2).role, CG_RAFT_FOLLOWER);
    cg_raft_tick(trio_node(&trio, 2)->raft, trio.now);
    trio_drain(&trio, 2);
    trio_settle(&trio);
    assert_int_equal(trio_status(&trio, 2).role, CG_RAFT_LEADER);
    trio_destroy(&trio);
}

static void split_votes_are_soon_asked_for_again(void **state) {
    (void)state;
    trio_init(&trio, NULL);
    trio_node(&trio, 1)->cut = true;
    // Both have the other's pre-vote before either asks for a vote.
    trio.now += 2 * TRIO_TIMEOUT;
    for (uint64_t id = 2; id <= 3; id++) {
        cg_raft_tick(trio_node(&trio, id)->raft, trio.now);
        trio_drain(&trio, id);
    }
    trio_settle(&trio);
    assert_int_equal(trio_status(&trio, 2).role, CG_RAFT_CANDIDATE);
    assert_int_equal(trio_status(&trio, 3).role, CG_RAFT_CANDIDATE);
    assert_int_equal(trio_status(&trio, 2).term, trio_status(&trio, 3).term);
    trio_run(&trio, TRIO_TIMEOUT / TRIO_MS - 20);
    assert_true(trio_status(&trio, 2).role == CG_RAFT_LEADER ||
                trio_status(&trio, 3).role == CG_RAFT_LEADER);
    trio_destroy(&trio);
}

static void waits_with_three(struct cg_raft_options *options) {
    options->apply_lag_max = 2;
}

static void whoever_has_much_to_apply_lets_others_lead(void **state) {
    (void)state;
    for (unsigned late = 1; late <= 2; late++) {
        trio_init(&trio, waits_with_three);
        trio_elect(&trio, 1);
        trio_node(&trio, 2)->late = true;
        trio_node(&trio, 3)->late = late == 2;
        assert_int_equal(trio_propose(&trio, 1, 3), 0);
        trio_run(&trio, 20);
        assert_int_equal(trio_status(&trio, 2).commit_index, 4);
        trio_node(&trio, 1)->cut = true;
        if (late == 1) {
            // As soon as if it were alone.
            trio_run(&trio, 2 * TRIO_TIMEOUT / TRIO_MS);
            assert_int_equal(trio_status(&trio, 3).role, CG_RAFT_LEADER);
        } else {
            // Where all have, one of them leads a little later.
            trio_run(&trio, 2 * TRIO_TIMEOUT / TRIO_MS - 50);
            assert_int_equal(trio_status(&trio, 2).role, CG_RAFT_FOLLOWER);
            trio_run(&trio, 3 * TRIO_TIMEOUT / TRIO_MS);
            assert_true(trio_status(&trio, 2).role == CG_RAFT_LEADER ||
                        trio_status(&trio, 3).role == CG_RAFT_LEADER);
        }
        trio_destroy(&trio);
    }
}

static void a_leader_without_a_majority_steps_down(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 1)->cut = true;
    trio_run(&trio, 450);
    assert_int_not_equal(trio_status(&trio, 1).role, CG_RAFT_LEADER);
    assert_int_not_equal(trio_status(&trio, 2).leader, 1);
    assert_int_not_equal(trio_status(&trio, 2).leader, 0);
    // Pre-vote: cut off, it did not raise its term, and does not disturb when it is back.
    uint64_t leader = trio_status(&trio, 2).leader;
    assert_true(trio_status(&trio, 1).term < trio_status(&trio, 2).term);
    trio_node(&trio, 1)->cut = false;
    trio_run(&trio, 300);
    assert_int_equal(trio_status(&trio, 1).leader, leader);
    trio_destroy(&trio);
}

// ---- Replication

static void entries_count_when_they_are_durable(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 1)->held = true;
    trio_node(&trio, 2)->held = true;
    assert_int_equal(trio_propose(&trio, 1, 3), 0);
    trio_settle(&trio);
    assert_int_equal(trio_node(&trio, 1)->commit, 1); // durable at 3 alone
    trio_release(&trio, 2);
    trio_settle(&trio);
    assert_int_equal(trio_node(&trio, 1)->commit, 4); // at 2 and 3; the leader's own is not needed
    trio_release(&trio, 1);
    trio_destroy(&trio);
}

static void a_late_write_of_replaced_entries_is_no_evidence(void **state) {
    (void)state;
    elected(1);
    struct trio_node *node = trio_node(&trio, 2);
    uint64_t term = trio_status(&trio, 2).term;
    node->held = true;
    struct cg_raft_entry old = {.term = term};
    struct cg_raft_entry new = {.term = term + 1};
    struct cg_raft_message append = {.type = CG_RAFT_APPEND, .from = 1, .to = 2, .term = term};
    append.prev_index = 1;
    append.prev_term = term;
    append.count = 1;
    append.entries = &old;
    assert_int_equal(trio_receive(&trio, &append), 0);
    append.from = 3;
    append.term = term + 1;
    append.entries = &new;
    assert_int_equal(trio_receive(&trio, &append), 0);
    // The write of the old entry 2 ends, then that of the new term; the new entry's does not.
    assert_int_equal(node->held_count, 3);
    cg_raft_durable(node->raft, trio.now, node->held_ticket[0], node->held_index[0]);
    cg_raft_durable(node->raft, trio.now, node->held_ticket[1], node->held_index[1]);
    assert_int_equal(trio_status(&trio, 2).durable_index, 1);
    cg_raft_durable(node->raft, trio.now, node->held_ticket[2], node->held_index[2]);
    assert_int_equal(trio_status(&trio, 2).durable_index, 2);
    trio_destroy(&trio);
}

static void a_follower_that_was_away_catches_up_within_the_caps(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 3)->cut = true;
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(trio_propose(&trio, 1, 9), 0);
        trio_settle(&trio);
    }
    assert_int_equal(trio_node(&trio, 1)->commit, 91);
    trio_node(&trio, 3)->cut = false;
    trio_run(&trio, 30);
    assert_int_equal(trio_node(&trio, 3)->commit, 91);
    trio_destroy(&trio);
}

static void conflicting_entries_are_replaced(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 1)->cut = true;
    assert_int_equal(trio_propose(&trio, 1, 5), 0); // nobody else gets them
    trio_elect(&trio, 2);
    assert_int_equal(trio_propose(&trio, 2, 2), 0);
    trio_settle(&trio);
    trio_node(&trio, 1)->cut = false;
    trio_run(&trio, 30);
    assert_int_equal(trio_status(&trio, 1).last_index, 4);
    assert_int_equal(trio_node(&trio, 1)->commit, 4);
    assert_int_equal(trio_node(&trio, 1)->log[2].term, trio_status(&trio, 2).term);
    trio_destroy(&trio);
}

static void a_leader_refuses_more_than_its_bound(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 2)->cut = true;
    trio_node(&trio, 3)->cut = true;
    assert_int_equal(trio_propose(&trio, 1, 100), 0);
    assert_int_equal(trio_propose(&trio, 1, 1), -EAGAIN);
    assert_int_equal(trio_propose(&trio, 2, 1), -EPERM);
    trio_destroy(&trio);
}

static void messages_that_make_no_sense_change_nothing(void **state) {
    (void)state;
    elected(1);
    struct cg_raft_entry entries[2] = {{.term = 9}, {.term = 8}};
    struct cg_raft_message bad = {.type = CG_RAFT_APPEND, .from = 1, .to = 2, .term = 9};
    bad.count = 2;
    bad.entries = entries;
    assert_int_equal(trio_receive(&trio, &bad), -EBADMSG); // terms fall
    bad.count = CG_RAFT_ENTRIES_MAX + 1;
    assert_int_equal(trio_receive(&trio, &bad), -EBADMSG);
    bad = (struct cg_raft_message){.type = 99, .from = 1, .to = 2, .term = 9};
    assert_int_equal(trio_receive(&trio, &bad), -EBADMSG);
    bad = (struct cg_raft_message){.type = CG_RAFT_HEARTBEAT, .from = 2, .to = 2, .term = 9};
    assert_int_equal(trio_receive(&trio, &bad), -EBADMSG);
    bad = (struct cg_raft_message){.type = CG_RAFT_APPEND_REPLY, .from = 2, .to = 1};
    bad.term = trio_status(&trio, 1).term;
    bad.match = 1000; // more than there is
    assert_int_equal(trio_receive(&trio, &bad), -EBADMSG);
    assert_int_equal(trio_status(&trio, 2).leader, 1);
    trio_destroy(&trio);
}

// ---- Reads

static void a_read_needs_the_lease_or_a_round(void **state) {
    (void)state;
    elected(1);
    uint64_t index = 0;
    struct cg_raft *leader = trio_node(&trio, 1)->raft;
    assert_true(cg_raft_read_index(leader, trio.now, &index));
    assert_int_equal(index, 1);
    // E (1 - d) / (1 + d) after the last round that was answered, at most a heartbeat ago
    uint64_t lease = TRIO_TIMEOUT / 11 * 9;
    uint64_t end = cg_raft_lease_end(leader, trio.now);
    assert_true(end <= trio.now + lease && end + 11 * TRIO_MS >= trio.now + lease);
    trio.now = end;
    assert_false(cg_raft_read_index(leader, trio.now, &index));
    assert_int_equal(cg_raft_read(leader, trio.now, 77), 0);
    trio_drain(&trio, 1);
    assert_int_equal(trio_node(&trio, 1)->read_ready, 0);
    trio_settle(&trio);
    assert_int_equal(trio_node(&trio, 1)->read_ready, 77);
    trio_destroy(&trio);
}

static void a_deposed_leader_fails_its_reads(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 1)->cut = true;
    trio.now += TRIO_TIMEOUT;
    assert_int_equal(cg_raft_read(trio_node(&trio, 1)->raft, trio.now, 5), 0);
    trio_drain(&trio, 1);
    trio_elect(&trio, 2);
    trio_node(&trio, 1)->cut = false;
    trio_run(&trio, 12);
    assert_int_equal(trio_node(&trio, 1)->read_failed, 5);
    assert_int_equal(trio_node(&trio, 1)->read_ready, 0);
    trio_destroy(&trio);
}

// ---- Transfer

static void a_transfer_catches_the_target_up_and_voids_the_lease(void **state) {
    (void)state;
    elected(1);
    struct cg_raft *leader = trio_node(&trio, 1)->raft;
    trio_node(&trio, 2)->held = true;
    assert_int_equal(trio_propose(&trio, 1, 2), 0);
    assert_int_equal(cg_raft_transfer(leader, trio.now, 2), 0);
    trio_drain(&trio, 1);
    trio_settle(&trio);
    assert_int_equal(trio_propose(&trio, 1, 1), -EAGAIN);
    assert_int_equal(trio_node(&trio, 1)->sent[CG_RAFT_TIMEOUT_NOW], 0);
    assert_true(cg_raft_lease_end(leader, trio.now) != 0);
    trio_release(&trio, 2);
    struct cg_raft_message ack = trio.flight[trio.flight_first];
    trio.flight_count = 0;
    assert_int_equal(trio_receive(&trio, &ack), 0);
    assert_int_equal(trio_node(&trio, 1)->sent[CG_RAFT_TIMEOUT_NOW], 1);
    assert_int_equal(cg_raft_lease_end(leader, trio.now), 0);
    trio_settle(&trio);
    assert_int_equal(trio_status(&trio, 2).role, CG_RAFT_LEADER);
    assert_int_equal(cg_raft_transfer(leader, trio.now, 3), -EPERM);
    trio_destroy(&trio);
}

// ---- Members

// Until then it does not even know that it is a learner, however little it lacks.
static void a_learner_becomes_a_voter_with_its_configuration(void **state) {
    (void)state;
    elected(1);
    struct cg_raft *leader = trio_node(&trio, 1)->raft;
    trio_node(&trio, 4)->cut = true;
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_ADD_LEARNER, 4), 0);
    trio_drain(&trio, 1);
    trio_run(&trio, 5);
    struct cg_raft_status status = trio_status(&trio, 1);
    assert_int_equal(status.commit_index, status.last_index);
    struct cg_raft_message reply = {
        .type = CG_RAFT_APPEND_REPLY, .from = 4, .to = 1, .term = status.term};
    reply.match = status.last_index - 1;
    assert_int_equal(trio_receive(&trio, &reply), 0);
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_PROMOTE, 4), -EAGAIN);
    reply.match = status.last_index;
    assert_int_equal(trio_receive(&trio, &reply), 0);
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_PROMOTE, 4), 0);
    trio_destroy(&trio);
}

static void a_learner_joins_catches_up_and_becomes_a_voter(void **state) {
    (void)state;
    elected(1);
    struct cg_raft *leader = trio_node(&trio, 1)->raft;
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(trio_propose(&trio, 1, 10), 0);
        trio_settle(&trio);
    }
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_ADD_LEARNER, 4), 0);
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_REMOVE, 3), -EAGAIN);
    trio_drain(&trio, 1);
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_PROMOTE, 4), -EAGAIN);
    trio_run(&trio, 30);
    assert_int_equal(trio_node(&trio, 4)->commit, 52);
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_PROMOTE, 4), 0);
    trio_drain(&trio, 1);
    trio_run(&trio, 30);
    assert_false(cg_raft_config(trio_node(&trio, 4)->raft)->member[3].learner);
    trio_destroy(&trio);
}

static void no_change_before_the_noop_of_the_term_is_committed(void **state) {
    (void)state;
    trio_init(&trio, NULL);
    for (uint64_t id = 1; id <= 3; id++) {
        trio_node(&trio, id)->held = id == 3; // votes, then holds entries
    }
    trio.now += 2 * TRIO_TIMEOUT;
    cg_raft_tick(trio_node(&trio, 1)->raft, trio.now);
    trio_drain(&trio, 1);
    trio_node(&trio, 3)->cut = true;
    while (trio_status(&trio, 1).role != CG_RAFT_LEADER) {
        struct cg_raft_message message = trio.flight[trio.flight_first];
        trio.flight_first = (trio.flight_first + 1) % TRIO_FLIGHT;
        trio.flight_count--;
        if (message.to != 3) {
            assert_int_equal(trio_receive(&trio, &message), 0);
        }
    }
    struct cg_raft *leader = trio_node(&trio, 1)->raft;
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_ADD_LEARNER, 4), -EAGAIN);
    trio_settle(&trio);
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_ADD_LEARNER, 4), 0);
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_ADD_LEARNER, 4), -EAGAIN);
    trio_drain(&trio, 1);
    trio_destroy(&trio);
}

static void a_leader_that_removes_itself_leaves_when_that_is_committed(void **state) {
    (void)state;
    elected(1);
    struct cg_raft *leader = trio_node(&trio, 1)->raft;
    assert_int_equal(cg_raft_change(leader, trio.now, CG_RAFT_REMOVE, 1), 0);
    trio_drain(&trio, 1);
    assert_int_equal(trio_status(&trio, 1).role, CG_RAFT_LEADER);
    trio_settle(&trio);
    assert_int_equal(trio_status(&trio, 1).role, CG_RAFT_FOLLOWER);
    trio_run(&trio, 400);
    assert_int_equal(cg_raft_config(trio_node(&trio, 2)->raft)->count, 2);
    assert_int_not_equal(trio_status(&trio, 2).leader, 0);
    trio_destroy(&trio);
}

static void a_configuration_goes_with_its_entry(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 1)->cut = true;
    assert_int_equal(cg_raft_change(trio_node(&trio, 1)->raft, trio.now, CG_RAFT_REMOVE, 3), 0);
    trio_drain(&trio, 1);
    assert_int_equal(cg_raft_config(trio_node(&trio, 1)->raft)->count, 2);
    trio_elect(&trio, 2);
    trio_node(&trio, 1)->cut = false;
    trio_run(&trio, 30);
    assert_int_equal(cg_raft_config(trio_node(&trio, 1)->raft)->count, 3);
    trio_destroy(&trio);
}

// ---- Snapshots, quiescing, failure

static void who_needs_what_is_gone_gets_a_snapshot(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 3)->cut = true;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(trio_propose(&trio, 1, 10), 0);
        trio_settle(&trio);
    }
    cg_raft_compact(trio_node(&trio, 1)->raft, 25);
    trio_node(&trio, 3)->cut = false;
    trio_run(&trio, 30);
    assert_int_equal(trio_node(&trio, 1)->snapshot_for, 3);
    struct cg_raft *behind = trio_node(&trio, 3)->raft;
    struct cg_raft_config config = *cg_raft_config(trio_node(&trio, 1)->raft);
    assert_true(cg_raft_snapshot_wanted(behind, 25));
    assert_int_equal(cg_raft_snapshot_installed(behind, trio.now, 25,
                                                cg_raft_term_at(trio_node(&trio, 1)->raft, 25),
                                                &config),
                     0);
    trio_drain(&trio, 3);
    cg_raft_snapshot_sent(trio_node(&trio, 1)->raft, 3, 25, true);
    trio_run(&trio, 30);
    assert_int_equal(trio_node(&trio, 3)->commit, 31);
    assert_false(cg_raft_snapshot_wanted(behind, 25));
    trio_destroy(&trio);
}

// Its answer was lost, and since it campaigned it does not know that its last entries are the
// leader's; they are also the last ones that the leader has compacted.
static void who_has_what_is_gone_needs_no_snapshot(void **state) {
    (void)state;
    elected(1);
    trio_node(&trio, 3)->held = true;
    assert_int_equal(trio_propose(&trio, 1, 10), 0);
    trio_settle(&trio);
    trio_node(&trio, 3)->cut = true;
    trio_node(&trio, 3)->held = false;
    trio_release(&trio, 3);
    trio_run(&trio, 250);
    assert_int_equal(trio_status(&trio, 3).leader, 0);
    uint64_t last = trio_status(&trio, 1).last_index;
    assert_int_equal(trio_status(&trio, 3).durable_index, last);
    cg_raft_compact(trio_node(&trio, 1)->raft, last);
    trio_node(&trio, 3)->cut = false;
    trio_run(&trio, 50);
    assert_int_equal(trio_node(&trio, 3)->commit, last);
    assert_int_equal(trio_node(&trio, 1)->snapshot_for, 0);
    trio_destroy(&trio);
}

static void a_restarted_follower_learns_what_is_committed_without_a_new_entry(void **state) {
    (void)state;
    elected(1);
    assert_int_equal(trio_propose(&trio, 1, 10), 0);
    trio_run(&trio, 30);
    assert_int_equal(trio_node(&trio, 3)->commit, 11);
    trio_restart(&trio, 3, 4);
    trio_run(&trio, 30);
    assert_int_equal(trio_node(&trio, 3)->commit, 11);
    assert_int_equal(trio_status(&trio, 1).leader, 1);
    trio_destroy(&trio);
}

// All lost power. The new leader's log goes back less far than what the others know of theirs.
static void logs_that_are_whole_need_no_snapshot_after_a_restart_of_all(void **state) {
    (void)state;
    elected(1);
    assert_int_equal(trio_propose(&trio, 1, 10), 0);
    trio_run(&trio, 30);
    trio_restart(&trio, 1, 10);
    trio_restart(&trio, 2, 4);
    trio_restart(&trio, 3, 6);
    trio_elect(&trio, 1);
    trio_run(&trio, 50);
    for (uint64_t id = 1; id <= 3; id++) {
        assert_int_equal(trio_node(&trio, id)->commit, 12);
    }
    assert_int_equal(trio_node(&trio, 1)->snapshot_for, 0);
    trio_destroy(&trio);
}

static void quiesce(struct cg_raft_options *options) {
    options->quiesce_after_ns = 50 * TRIO_MS;
}

static void an_idle_group_falls_quiet_and_wakes_for_a_proposal(void **state) {
    (void)state;
    trio_init(&trio, quiesce);
    trio_elect(&trio, 1);
    trio_run(&trio, 100);
    for (uint64_t id = 1; id <= 3; id++) {
        assert_true(trio_status(&trio, id).quiet);
        assert_true(cg_raft_deadline(trio_node(&trio, id)->raft) == UINT64_MAX);
    }
    uint32_t before = trio_node(&trio, 1)->sent[CG_RAFT_HEARTBEAT];
    trio_run(&trio, 1000);
    assert_int_equal(trio_node(&trio, 1)->sent[CG_RAFT_HEARTBEAT], before);
    assert_int_equal(trio_status(&trio, 1).role, CG_RAFT_LEADER);
    uint64_t index;
    assert_false(cg_raft_read_index(trio_node(&trio, 1)->raft, trio.now, &index));
    assert_int_equal(trio_propose(&trio, 1, 1), 0);
    trio_run(&trio, 20);
    assert_int_equal(trio_node(&trio, 3)->commit, 2);
    assert_false(trio_status(&trio, 3).quiet);
    // A quiet group that loses its leader is told from outside.
    trio_run(&trio, 200);
    assert_true(trio_status(&trio, 2).quiet);
    trio_node(&trio, 1)->cut = true;
    cg_raft_wake(trio_node(&trio, 2)->raft, trio.now);
    cg_raft_wake(trio_node(&trio, 3)->raft, trio.now);
    trio_run(&trio, 450);
    assert_int_not_equal(trio_status(&trio, 2).leader, 1);
    assert_int_not_equal(trio_status(&trio, 2).leader, 0);
    trio_destroy(&trio);
}

static void a_failed_disk_silences_its_server(void **state) {
    (void)state;
    elected(1);
    cg_raft_disk_error(trio_node(&trio, 1)->raft);
    trio_drain(&trio, 1);
    assert_int_equal(trio_status(&trio, 1).role, CG_RAFT_RETIRED);
    assert_int_equal(trio_propose(&trio, 1, 1), -EIO);
    memset(trio_node(&trio, 1)->sent, 0, sizeof(trio_node(&trio, 1)->sent));
    trio_run(&trio, 500);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(trio_node(&trio, 1)->sent[i], 0);
    }
    assert_int_not_equal(trio_status(&trio, 2).leader, 1);
    trio_destroy(&trio);
}

static uint32_t fit_none(void *context, uint64_t first, uint64_t last, uint32_t max_bytes,
                         uint64_t *bytes) {
    (void)context, (void)first, (void)last, (void)max_bytes;
    *bytes = 0;
    return 0;
}

static void what_the_log_says_at_a_start_is_checked(void **state) {
    (void)state;
    struct cg_raft_options options = {.id = 1,
                                      .election_timeout_ns = TRIO_TIMEOUT,
                                      .heartbeat_interval_ns = TRIO_TIMEOUT,
                                      .message_bytes_max = 1,
                                      .message_entries_max = 1,
                                      .inflight_messages_max = 1,
                                      .inflight_bytes_max = 1,
                                      .uncommitted_entries_max = 1,
                                      .reads_max = 1,
                                      .terms_max = 8,
                                      .fit = fit_none};
    struct cg_raft_restored restored = {.term = 4, .vote = 2, .base_index = 10, .base_term = 3};
    restored.config = (struct cg_raft_config){.count = 2, .member = {{1}, {2}}};
    struct cg_raft *raft;
    assert_int_equal(cg_raft_create(&options, &restored, &raft), -EINVAL); // heartbeats too rare
    options.heartbeat_interval_ns = TRIO_TIMEOUT / 3;
    assert_int_equal(cg_raft_create(&options, &restored, &raft), 0);
    cg_raft_restore_state(raft, 6, 2);
    cg_raft_restore_state(raft, 3, 0); // passed over
    struct cg_raft_entry entry = {.term = 3};
    assert_int_equal(cg_raft_restore_entry(raft, 9, &entry), 0);  // in the snapshot
    assert_int_equal(cg_raft_restore_entry(raft, 12, &entry), 0); // does not fit
    assert_int_equal(cg_raft_start(raft, 1), -EBADMSG);
    assert_int_equal(cg_raft_restore_entry(raft, 11, &entry), 0); // makes it void
    entry.term = 2;
    assert_int_equal(cg_raft_restore_entry(raft, 12, &entry), 0); // terms do not fall
    assert_int_equal(cg_raft_start(raft, 1), -EBADMSG);
    entry.term = 3;
    assert_int_equal(cg_raft_restore_entry(raft, 10, &entry), 0); // both are void
    assert_int_equal(cg_raft_restore_entry(raft, 11, &entry), 0);
    assert_int_equal(cg_raft_restore_entry(raft, 12, &entry), 0);
    struct cg_raft_config config = {.count = 1, .member = {{2}}};
    entry = (struct cg_raft_entry){.term = 5, .type = CG_RAFT_ENTRY_CONFIG, .config = &config};
    assert_int_equal(cg_raft_restore_entry(raft, 12, &entry), 0); // replaces
    entry.term = 7;
    assert_int_equal(cg_raft_restore_entry(raft, 13, &entry), -EBADMSG); // above the state's
    assert_int_equal(cg_raft_config(raft)->count, 1);
    entry = (struct cg_raft_entry){.term = 6};
    assert_int_equal(cg_raft_restore_entry(raft, 12, &entry), 0);
    assert_int_equal(cg_raft_config(raft)->count, 2);
    assert_int_equal(cg_raft_start(raft, 1), 0);
    struct cg_raft_status status;
    cg_raft_status(raft, &status);
    assert_true(status.term == 6 && status.vote == 2 && status.last_index == 12);
    assert_true(status.commit_index == 10 && status.durable_index == 12);
    cg_raft_destroy(raft);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(terms_are_kept_as_runs),
        cmocka_unit_test(a_group_elects_one_leader_and_commits_its_noop),
        cmocka_unit_test(requests_for_votes_wait_for_the_candidates_own_disk),
        cmocka_unit_test(a_vote_is_given_when_it_is_durable_and_only_once),
        cmocka_unit_test(nobody_votes_while_a_leader_is_heard_unless_forced),
        cmocka_unit_test(pre_votes_without_an_answer_are_repeated_soon_and_then_rarely),
        cmocka_unit_test(whoever_is_asked_by_one_that_lacks_entries_campaigns),
        cmocka_unit_test(split_votes_are_soon_asked_for_again),
        cmocka_unit_test(whoever_has_much_to_apply_lets_others_lead),
        cmocka_unit_test(a_leader_without_a_majority_steps_down),
        cmocka_unit_test(entries_count_when_they_are_durable),
        cmocka_unit_test(a_late_write_of_replaced_entries_is_no_evidence),
        cmocka_unit_test(a_follower_that_was_away_catches_up_within_the_caps),
        cmocka_unit_test(conflicting_entries_are_replaced),
        cmocka_unit_test(a_leader_refuses_more_than_its_bound),
        cmocka_unit_test(messages_that_make_no_sense_change_nothing),
        cmocka_unit_test(a_read_needs_the_lease_or_a_round),
        cmocka_unit_test(a_deposed_leader_fails_its_reads),
        cmocka_unit_test(a_transfer_catches_the_target_up_and_voids_the_lease),
        cmocka_unit_test(a_learner_becomes_a_voter_with_its_configuration),
        cmocka_unit_test(a_learner_joins_catches_up_and_becomes_a_voter),
        cmocka_unit_test(no_change_before_the_noop_of_the_term_is_committed),
        cmocka_unit_test(a_leader_that_removes_itself_leaves_when_that_is_committed),
        cmocka_unit_test(a_configuration_goes_with_its_entry),
        cmocka_unit_test(who_needs_what_is_gone_gets_a_snapshot),
        cmocka_unit_test(who_has_what_is_gone_needs_no_snapshot),
        cmocka_unit_test(a_restarted_follower_learns_what_is_committed_without_a_new_entry),
        cmocka_unit_test(logs_that_are_whole_need_no_snapshot_after_a_restart_of_all),
        cmocka_unit_test(an_idle_group_falls_quiet_and_wakes_for_a_proposal),
        cmocka_unit_test(a_failed_disk_silences_its_server),
        cmocka_unit_test(what_the_log_says_at_a_start_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
