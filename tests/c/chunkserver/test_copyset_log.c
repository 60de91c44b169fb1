// SPDX-License-Identifier: BSD-3-Clause
//
// Copyset logs in one process, over simulated disks with the real log and a network that loses.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chunkserver/copyset_log_record.h"
#include "logmodel.h"

#define CACHE (1U << 20)

static struct logmodel model; // large

static struct logmodel_member *follower_of(const struct logmodel_member *leader) {
    return &model.member[leader->id == 1 ? 2 : 1];
}

static struct cg_copyset_log_status status_of_log(const struct cg_copyset_log *log) {
    struct cg_copyset_log_status status;
    cg_copyset_log_status(log, &status);
    return status;
}

static struct cg_copyset_log_status status_of(const struct logmodel_member *member) {
    return status_of_log(member->log);
}

// ---- Records

static void records_survive_encoding_and_damaged_ones_are_refused(void **state) {
    (void)state;
    const struct cg_record_install install = {
        .voids = true,
        .config = {.count = 2,
                   .member = {{.id = 7}, {.id = UINT64_C(3) << 32 | 8, .learner = true}}},
    };
    uint8_t meta[CG_RECORD_INSTALL_SIZE_MAX];
    struct cg_wal_record record = {.type = CG_RECORD_INSTALL, .meta = meta};
    record.meta_length = (uint32_t)cg_record_install_encode(&install, meta);
    struct cg_record_install out;
    assert_int_equal(cg_record_install_decode(&record, &out), 0);
    assert_true(out.voids && out.config.count == 2);
    assert_int_equal(out.config.member[0].id, 7);
    assert_false(out.config.member[0].learner);
    assert_int_equal(out.config.member[1].id, install.config.member[1].id);
    assert_true(out.config.member[1].learner);
    for (uint32_t length = 0; length < record.meta_length; length++) {
        struct cg_wal_record cut = record;
        cut.meta_length = length;
        assert_int_equal(cg_record_install_decode(&cut, &out), -EBADMSG);
    }
    meta[0] |= 2; // an unknown flag
    assert_int_equal(cg_record_install_decode(&record, &out), -EBADMSG);
    meta[0] &= 1;
    memcpy(meta + 32, meta + 16, 8); // a member twice
    assert_int_equal(cg_record_install_decode(&record, &out), -EBADMSG);
    meta[8] = CG_RAFT_MEMBERS_MAX + 1;
    assert_int_equal(cg_record_install_decode(&record, &out), -EBADMSG);

    uint8_t vote[CG_RECORD_STATE_SIZE];
    uint64_t voted;
    cg_record_state_encode(UINT64_C(5) << 32 | 6, vote);
    struct cg_wal_record of_state = {
        .type = CG_RECORD_STATE, .meta = vote, .meta_length = sizeof(vote)};
    assert_int_equal(cg_record_state_decode(&of_state, &voted), 0);
    assert_true(voted == (UINT64_C(5) << 32 | 6));
    of_state.meta_length--;
    assert_int_equal(cg_record_state_decode(&of_state, &voted), -EBADMSG);
}

// ---- One member

static void sole_member_leads_and_delivers_its_entries(void **state) {
    (void)state;
    logmodel_init(&model, 1, 1, CACHE);
    assert_int_equal(logmodel_propose(&model, &model.member[1], 0), -EPERM);
    struct logmodel_member *leader = logmodel_leader(&model);
    assert_int_equal(leader->id, 1);
    assert_true(leader->role_changes > 0);
    assert_true(leader->lease_end == UINT64_MAX);
    logmodel_write(&model, 300, 1);
    assert_true(cg_copyset_log_can_read(leader->log));
    assert_int_equal(leader->delivered, 301); // with the no-op
    // Nobody else will ask for what was applied.
    struct cg_log_disk_stats stats;
    cg_log_disk_stats(leader->disk, &stats);
    assert_int_equal(stats.cached_entries, 0);
    assert_true(status_of(leader).base_index > 0);
    logmodel_destroy(&model);
}

static void sole_member_finds_its_entries_after_a_power_loss(void **state) {
    (void)state;
    logmodel_init(&model, 2, 1, CACHE);
    logmodel_write(&model, 100, 2);
    struct logmodel_member *member = logmodel_leader(&model);
    logmodel_checkpoint(member, UINT64_MAX);
    logmodel_write(&model, 100, 1);
    uint64_t term = status_of(member).term;
    logmodel_crash(member, SIMDISK_DROP_ALL);
    logmodel_start(member);
    assert_int_equal(member->delivered, 101);
    logmodel_settle(&model);
    assert_int_equal(member->delivered, 202);
    assert_true(status_of(member).term > term);
    logmodel_write(&model, 10, 1);
    logmodel_destroy(&model);
}

static void log_without_states_is_taken_over_from_an_earlier_version(void **state) {
    (void)state;
    struct cg_log_disk *disk = NULL;
    struct cg_copyset_log *log = NULL;
    const struct cg_log_disk_options disk_options = {0};
    assert_int_equal(cg_log_disk_create(&disk_options, &disk), 0);
    const struct cg_copyset_log_options options = {.group = 9, .self = 5, .disk = disk};
    const struct cg_copyset_log_saved saved = {
        .term = 3, .index_term = 3, .index = 10, .config = {.count = 1, .member = {{.id = 5}}}};
    assert_int_equal(cg_copyset_log_create(&options, &saved, &log), 0);
    assert_int_equal(cg_copyset_log_create(&options, &saved, &log), -EEXIST);
    for (uint64_t index = 9; index <= 12; index++) {
        const struct cg_wal_record record = {.group = 9, .term = 4, .index = index, .type = 1};
        assert_int_equal(cg_copyset_log_restore(log, index * CG_WAL_BLOCK, &record), 0);
    }
    assert_int_equal(status_of_log(log).last_index, 12);
    // Since there is a state, an entry of a later term is none.
    const uint8_t vote[8] = {5};
    const struct cg_wal_record of_state = {
        .group = 9, .term = 4, .type = CG_WAL_TYPE_STATE, .meta = vote, .meta_length = 8};
    assert_int_equal(cg_copyset_log_restore(log, 13 * CG_WAL_BLOCK, &of_state), 0);
    const struct cg_wal_record later = {.group = 9, .term = 5, .index = 13, .type = 1};
    assert_int_equal(cg_copyset_log_restore(log, 14 * CG_WAL_BLOCK, &later), -EBADMSG);
    cg_copyset_log_destroy(log);
    cg_log_disk_destroy(disk);
}

// ---- Three

static void three_members_agree_on_every_entry(void **state) {
    (void)state;
    logmodel_init(&model, 4, 3, CACHE);
    logmodel_write(&model, 500, 1);
    logmodel_settle(&model);
    for (unsigned id = 1; id <= 3; id++) {
        assert_int_equal(model.member[id].delivered, model.last);
    }
    assert_int_equal(model.failed, 0);
    // Entries that are proposed together travel together.
    assert_true(model.sent[CG_RAFT_APPEND] < 500);
    logmodel_destroy(&model);
}

static void lost_messages_are_made_up_for(void **state) {
    (void)state;
    logmodel_init(&model, 5, 3, CACHE);
    model.loss_percent = 20;
    logmodel_write(&model, 300, 1);
    model.loss_percent = 0;
    logmodel_settle(&model);
    logmodel_destroy(&model);
}

static void idle_group_sends_nothing(void **state) {
    (void)state;
    logmodel_init(&model, 6, 3, CACHE);
    logmodel_write(&model, 10, 1);
    logmodel_settle(&model);
    logmodel_run(&model, 4000);
    assert_true(status_of(logmodel_leader(&model)).quiet);
    uint64_t before = model.sent[CG_RAFT_HEARTBEAT] + model.sent[CG_RAFT_VOTE];
    logmodel_run(&model, 5000);
    assert_int_equal(model.sent[CG_RAFT_HEARTBEAT] + model.sent[CG_RAFT_VOTE], before);
    // The leader's machine is gone, which only a connection tells.
    struct logmodel_member *leader = logmodel_leader(&model);
    logmodel_crash(leader, SIMDISK_DROP_ALL);
    for (unsigned id = 1; id <= 3; id++) {
        if (model.member[id].up) {
            cg_copyset_log_peer(model.member[id].log, (uint32_t)leader->id, false);
        }
    }
    assert_ptr_not_equal(logmodel_leader(&model), leader);
    logmodel_destroy(&model);
}

static void follower_that_lost_power_catches_up(void **state) {
    (void)state;
    logmodel_init(&model, 7, 3, CACHE);
    logmodel_write(&model, 50, 1);
    struct logmodel_member *follower = follower_of(logmodel_leader(&model));
    logmodel_crash(follower, SIMDISK_DROP_ALL);
    logmodel_write(&model, 50, 1);
    logmodel_start(follower);
    logmodel_settle(&model);
    assert_int_equal(follower->delivered, model.last);
    logmodel_destroy(&model);
}

static void nothing_acknowledged_is_lost_when_all_lose_power(void **state) {
    (void)state;
    for (uint64_t seed = 100; seed < 110; seed++) {
        logmodel_init(&model, seed, 3, CACHE);
        logmodel_write(&model, 40, 1);
        struct logmodel_member *leader = logmodel_leader(&model);
        for (unsigned i = 0; i < 20; i++) { // and these are on their way
            assert_int_equal(logmodel_propose(&model, leader, 1), 0);
        }
        logmodel_run(&model, logmodel_below(&model, 3));
        uint64_t acked = 0;
        for (uint64_t index = 1; index <= model.last; index++) {
            acked = model.log[index].acked ? index : acked;
        }
        for (unsigned id = 1; id <= 3; id++) {
            logmodel_crash(&model.member[id], SIMDISK_DROP_ALL);
        }
        for (unsigned id = 1; id <= 3; id++) {
            logmodel_start(&model.member[id]);
        }
        logmodel_settle(&model);
        assert_true(logmodel_leader(&model)->delivered > acked);
        logmodel_write(&model, 5, 1);
        logmodel_destroy(&model);
    }
}

static void deposed_leader_fails_its_proposals_and_takes_the_new_ones_entries(void **state) {
    (void)state;
    logmodel_init(&model, 8, 3, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *old = logmodel_leader(&model);
    logmodel_isolate(&model, old, true);
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(logmodel_propose(&model, old, 1), 0);
    }
    logmodel_run(&model, 100);
    assert_int_equal(model.pending, 10);
    logmodel_run(&model, 3000);
    assert_int_equal(model.pending, 0);
    assert_int_equal(model.failed, 10);
    assert_int_equal(model.last_failure, -ESTALE);
    assert_int_equal(logmodel_propose(&model, old, 1), -EPERM);
    struct logmodel_member *leader = logmodel_leader(&model);
    assert_ptr_not_equal(leader, old);
    logmodel_write(&model, 30, 1);
    logmodel_isolate(&model, old, false);
    logmodel_settle(&model); // the ten are overwritten: else the model would stop
    assert_int_equal(old->delivered, model.last);
    // The same once more, and now from what its disk says.
    logmodel_crash(old, SIMDISK_DROP_ALL);
    logmodel_start(old);
    logmodel_settle(&model);
    logmodel_destroy(&model);
}

static void receive_one(struct logmodel_member *to, const struct cg_copyset_log_status *status,
                        uint32_t type, uint64_t index) {
    const uint8_t meta[8] = {0};
    struct cg_log_entry *entry =
        cg_log_entry_make(type, status->term, index, meta, sizeof(meta), NULL, NULL, 0, NULL);
    const struct cg_raft_message message = {
        .type = CG_RAFT_APPEND,
        .from = status->leader,
        .to = to->id,
        .term = status->term,
        .prev_index = status->last_index,
        .prev_term = status->term,
        .count = 1,
    };
    cg_copyset_log_receive(to->log, &message, &entry);
    cg_log_entry_unref(entry);
}

static void entries_that_are_none_are_refused(void **state) {
    (void)state;
    logmodel_init(&model, 20, 3, CACHE);
    logmodel_write(&model, 20, 1);
    logmodel_settle(&model);
    struct logmodel_member *follower = follower_of(logmodel_leader(&model));
    struct cg_copyset_log_status status = status_of(follower);
    receive_one(follower, &status, CG_RECORD_STATE, status.last_index + 1);
    receive_one(follower, &status, 1, status.last_index + 2);               // not after prev_index
    receive_one(follower, &status, CG_ENTRY_CONFIG, status.last_index + 1); // of no members
    assert_int_equal(status_of(follower).last_index, status.last_index);
    receive_one(follower, &status, 1, status.last_index + 1);
    assert_int_equal(status_of(follower).last_index, status.last_index + 1);
    logmodel_destroy(&model);
}

// ---- Memory and the log on disk

static void slow_follower_is_served_from_the_disk(void **state) {
    (void)state;
    logmodel_init(&model, 9, 3, 256U << 10);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    struct logmodel_member *slow = follower_of(leader);
    logmodel_isolate(&model, slow, true);
    logmodel_write(&model, 600, 1);
    struct cg_log_disk_stats stats;
    cg_log_disk_stats(leader->disk, &stats);
    assert_true(stats.cached_bytes <= 256U << 10);
    assert_true(stats.evictions > 400);
    assert_int_equal(stats.fetches, 0);
    logmodel_isolate(&model, slow, false);
    logmodel_settle(&model);
    cg_log_disk_stats(leader->disk, &stats);
    assert_true(stats.fetches > 0);
    assert_int_equal(leader->copies_asked, 0);
    assert_ptr_equal(logmodel_leader(&model), leader);
    logmodel_destroy(&model);
}

static void checkpoint_keeps_what_lagging_members_need(void **state) {
    (void)state;
    logmodel_init(&model, 10, 3, 64U << 10);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    struct logmodel_member *slow = follower_of(leader);
    logmodel_isolate(&model, slow, true);
    logmodel_write(&model, 200, 1);
    logmodel_checkpoint(leader, 0);
    logmodel_write(&model, 200, 1);
    logmodel_checkpoint(leader, 0);
    logmodel_isolate(&model, slow, false);
    logmodel_settle(&model);
    assert_int_equal(leader->copies_asked, 0);
    // Everybody restarts from a checkpoint.
    for (unsigned id = 1; id <= 3; id++) {
        logmodel_checkpoint(&model.member[id], UINT64_MAX);
        logmodel_crash(&model.member[id], SIMDISK_DROP_ALL);
        logmodel_start(&model.member[id]);
    }
    logmodel_write(&model, 20, 1);
    logmodel_destroy(&model);
}

static void member_that_needs_recycled_entries_is_copied_the_state(void **state) {
    (void)state;
    logmodel_init(&model, 11, 3, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    struct logmodel_member *slow = follower_of(leader);
    logmodel_isolate(&model, slow, true);
    logmodel_write(&model, 100, 1);
    logmodel_checkpoint(leader, UINT64_MAX);
    logmodel_isolate(&model, slow, false);
    logmodel_run(&model, 500);
    assert_true(leader->copies_asked > 0);
    assert_true(leader->copy_for[slow->id]);
    assert_true(logmodel_progress(leader, slow->id).snapshot);
    logmodel_write(&model, 10, 1);
    logmodel_copy(&model, leader, slow);
    assert_int_equal(slow->install_status, 0);
    logmodel_write(&model, 50, 1);
    logmodel_settle(&model);
    assert_int_equal(slow->delivered, model.last);
    assert_false(logmodel_progress(leader, slow->id).snapshot);
    // The record counts after a restart, though no checkpoint contains it.
    uint64_t installed = status_of(slow).base_index;
    assert_true(installed >= 100);
    logmodel_crash(slow, SIMDISK_DROP_ALL);
    logmodel_start(slow);
    assert_int_equal(slow->delivered, installed);
    logmodel_settle(&model);
    // And with a checkpoint that does.
    logmodel_checkpoint(slow, UINT64_MAX);
    logmodel_write(&model, 10, 1);
    logmodel_crash(slow, SIMDISK_DROP_ALL);
    logmodel_start(slow);
    logmodel_settle(&model);
    logmodel_destroy(&model);
}

static void copied_state_voids_a_log_that_lacks_its_entry(void **state) {
    (void)state;
    logmodel_init(&model, 12, 3, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *old = logmodel_leader(&model);
    logmodel_isolate(&model, old, true);
    for (unsigned i = 0; i < 200; i++) { // a tail that nobody else has, longer than what is copied
        assert_int_equal(logmodel_propose(&model, old, 1), 0);
    }
    logmodel_run(&model, 3000);
    struct logmodel_member *leader = logmodel_leader(&model);
    logmodel_write(&model, 50, 1);
    logmodel_checkpoint(leader, UINT64_MAX);
    logmodel_isolate(&model, old, false);
    logmodel_run(&model, 500);
    assert_true(leader->copies_asked > 0);
    assert_true(status_of(old).last_index > status_of(leader).last_index);
    logmodel_copy(&model, leader, old);
    assert_int_equal(old->install_status, 0);
    assert_int_equal(status_of(old).last_index, status_of(old).base_index);
    logmodel_crash(old, SIMDISK_DROP_ALL);
    logmodel_start(old);
    assert_int_equal(status_of(old).last_index, status_of(old).base_index);
    logmodel_write(&model, 50, 1);
    logmodel_settle(&model);
    logmodel_destroy(&model);
}

static void copying_that_is_given_up_leaves_the_log_as_it_was(void **state) {
    (void)state;
    logmodel_init(&model, 18, 3, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    struct logmodel_member *other = follower_of(leader);
    cg_copyset_log_install_begin(other->log);
    uint64_t before = other->delivered;
    logmodel_write(&model, 20, 1);
    logmodel_run(&model, 500);
    assert_int_equal(other->delivered, before);
    assert_int_equal(status_of(other).leader, leader->id);
    struct cg_copyset_log_status status = status_of(leader);
    assert_true(cg_copyset_log_wants_state(other->log, status.applied_index, status.term));
    assert_false(cg_copyset_log_wants_state(other->log, status.applied_index, status.term + 1));
    assert_false(cg_copyset_log_wants_state(other->log, before, status.term));
    cg_copyset_log_install_abort(other->log);
    logmodel_settle(&model);
    logmodel_destroy(&model);
}

// A leader that has lost its followers, with 30 entries that are not committed.
static struct logmodel_member *stuck_leader(uint64_t seed) {
    logmodel_init(&model, seed, 3, 64U << 10);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    logmodel_isolate(&model, leader, true);
    for (unsigned i = 0; i < 30; i++) {
        assert_int_equal(logmodel_propose(&model, leader, 1 + i % 2), 0);
    }
    logmodel_run(&model, 3000);
    return leader;
}

static void entries_that_wait_for_their_group_do_not_hold_up_the_log_on_disk(void **state) {
    (void)state;
    struct logmodel_member *old = stuck_leader(21);
    uint64_t last = status_of(old).last_index;
    uint64_t delivered = old->delivered;
    assert_true(delivered < last);
    logmodel_fill(&model, old, 100);
    uint64_t before = cg_wal_tail(old->wal);
    logmodel_checkpoint(old, before);
    assert_true(old->saved_lsn < before);
    logmodel_run(&model, 200);
    logmodel_checkpoint(old, before);
    assert_true(old->saved_lsn >= before); // they lie behind now
    logmodel_crash(old, SIMDISK_DROP_ALL);
    // The others go on without it, and its entries are void.
    logmodel_write(&model, 10, 1);
    logmodel_start(old);
    assert_int_equal(status_of(old).last_index, last);
    logmodel_isolate(&model, old, false);
    logmodel_settle(&model);
    logmodel_destroy(&model);
}

static void entries_that_were_moved_are_committed_by_their_group_in_the_end(void **state) {
    (void)state;
    logmodel_init(&model, 22, 3, 64U << 10);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *only = logmodel_leader(&model);
    for (unsigned id = 1; id <= 3; id++) {
        if (id != only->id) {
            logmodel_crash(&model.member[id], SIMDISK_DROP_ALL);
        }
    }
    for (unsigned i = 0; i < 30; i++) {
        assert_int_equal(logmodel_propose(&model, only, 1 + i % 2), 0);
    }
    logmodel_run(&model, 3000);
    uint64_t value = model.next_value;
    uint64_t last = status_of(only).last_index;
    for (unsigned i = 0; i < 2; i++) {
        logmodel_fill(&model, only, 100);
        logmodel_checkpoint(only, cg_wal_tail(only->wal));
        logmodel_run(&model, 200);
    }
    assert_true(status_of(only).commit_index < last);
    // With one other it has a majority, and nobody else can lead: it reads them back.
    logmodel_start(follower_of(only));
    logmodel_settle(&model);
    assert_ptr_equal(logmodel_leader(&model), only);
    assert_true(model.last > last);
    assert_int_equal(model.log[last].value, value);
    logmodel_destroy(&model);
}

// Power is lost at any moment of the move.
static void moving_entries_loses_none_of_them(void **state) {
    (void)state;
    for (unsigned ms = 0; ms < 40; ms++) {
        struct logmodel_member *old = stuck_leader(200 + ms);
        uint64_t last = status_of(old).last_index;
        logmodel_fill(&model, old, 20);
        logmodel_checkpoint(old, UINT64_MAX);
        logmodel_run(&model, ms);
        logmodel_checkpoint(old, UINT64_MAX);
        logmodel_crash(old, (enum simdisk_crash)(ms % SIMDISK_CRASH_MODES));
        logmodel_start(old);
        assert_int_equal(status_of(old).last_index, last);
        logmodel_isolate(&model, old, false);
        logmodel_settle(&model);
        logmodel_destroy(&model);
    }
}

static int restore_moved(struct cg_copyset_log *log, uint64_t first, uint64_t last) {
    uint8_t meta[CG_WAL_META_MAX];
    const struct cg_wal_record record = {
        .group = 9,
        .term = 4,
        .index = last,
        .type = CG_RECORD_MOVED,
        .meta = meta,
        .meta_length = (uint32_t)cg_record_moved_encode(first, meta),
    };
    return cg_copyset_log_restore(log, 20 * CG_WAL_BLOCK, &record);
}

// The batch with the MOVED record holds what overwrote the entries, too: a checkpoint may have the
// replay begin there.
static void move_is_void_once_its_entries_are_and_a_gap_otherwise(void **state) {
    (void)state;
    logmodel_init(&model, 27, 1, CACHE);
    struct cg_copyset_log *log = NULL;
    const struct cg_copyset_log_options options = {
        .group = 9, .self = 5, .disk = model.member[1].disk};
    const struct cg_copyset_log_saved saved = {
        .term = 5, .index_term = 3, .index = 9, .config = {.count = 1, .member = {{.id = 5}}}};
    assert_int_equal(cg_copyset_log_create(&options, &saved, &log), 0);
    assert_int_equal(restore_moved(log, 8, 40), 0);
    assert_int_equal(cg_copyset_log_start(log), -EBADMSG);
    const struct cg_wal_record voids = {.group = 9, .term = 5, .index = 10, .type = 1};
    assert_int_equal(cg_copyset_log_restore(log, 20 * CG_WAL_BLOCK, &voids), 0);
    assert_int_equal(status_of_log(log).last_index, 10);
    // Only some of them are void.
    assert_int_equal(restore_moved(log, 10, 40), 0);
    const struct cg_wal_record later = {.group = 9, .term = 5, .index = 12, .type = 1};
    assert_int_equal(cg_copyset_log_restore(log, 20 * CG_WAL_BLOCK, &later), 0);
    assert_int_equal(cg_copyset_log_start(log), -EBADMSG);
    cg_copyset_log_destroy(log);
    logmodel_destroy(&model);
}

static void entry_that_is_refused_is_offered_again(void **state) {
    (void)state;
    logmodel_init(&model, 13, 3, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    leader->refuse = true;
    struct logmodel_member *follower = follower_of(leader);
    follower->refuse = true;
    assert_int_equal(logmodel_propose(&model, leader, 1), 0);
    logmodel_run(&model, 100);
    uint64_t before = leader->delivered;
    assert_int_equal(model.pending, 1);
    assert_true(status_of(leader).commit_index > before);
    assert_false(cg_copyset_log_can_read(leader->log)); // committed, and not to be seen here
    leader->refuse = false;
    cg_copyset_log_resume(leader->log);
    logmodel_run(&model, 1);
    assert_int_equal(leader->delivered, before + 1);
    assert_int_equal(model.pending, 0);
    assert_true(cg_copyset_log_can_read(leader->log));
    follower->refuse = false;
    cg_copyset_log_resume(follower->log);
    logmodel_settle(&model);
    logmodel_destroy(&model);
}

// ---- Leadership

static void leadership_is_handed_over_without_a_pause(void **state) {
    (void)state;
    logmodel_init(&model, 14, 3, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *old = logmodel_leader(&model);
    struct logmodel_member *next = follower_of(old);
    assert_int_equal(cg_copyset_log_transfer(next->log, old->id), -EPERM);
    assert_int_equal(cg_copyset_log_transfer(old->log, 9), -EINVAL);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(logmodel_propose(&model, old, 1), 0);
    }
    assert_int_equal(cg_copyset_log_transfer(old->log, next->id), 0);
    assert_int_equal(logmodel_propose(&model, old, 1), -EAGAIN);
    logmodel_run(&model, 40);
    assert_true(cg_copyset_log_ready(next->log));
    assert_false(cg_copyset_log_ready(old->log));
    assert_int_equal(old->lease_end, 0);
    assert_int_equal(cg_copyset_log_leader(old->log), next->id);
    assert_int_equal(model.failed, 0);
    logmodel_write(&model, 20, 1);
    logmodel_destroy(&model);
}

static void terms_of_many_leaders_do_not_fill_the_memory(void **state) {
    (void)state;
    logmodel_init(&model, 19, 3, CACHE);
    for (unsigned i = 0; i < 400; i++) {
        struct logmodel_member *leader = logmodel_leader(&model);
        assert_int_equal(cg_copyset_log_transfer(leader->log, 1 + leader->id % 3), 0);
        logmodel_run(&model, 10);
    }
    logmodel_write(&model, 20, 1);
    assert_true(status_of(logmodel_leader(&model)).term > 300);
    assert_true(status_of(logmodel_leader(&model)).base_index > 0);
    logmodel_settle(&model);
    logmodel_destroy(&model);
}

static void reads_are_answered_under_the_lease_and_by_asking(void **state) {
    (void)state;
    logmodel_init(&model, 15, 3, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    struct logmodel_member *follower = follower_of(leader);
    logmodel_run(&model, 200);
    assert_true(cg_copyset_log_can_read(leader->log));
    assert_true(leader->lease_end > model.now);
    assert_false(cg_copyset_log_can_read(follower->log));
    assert_int_equal(follower->lease_end, 0);
    logmodel_read(&model, follower);
    assert_int_equal(model.reads_done, 0);
    logmodel_run(&model, 5);
    assert_int_equal(model.reads_done, 1);
    assert_int_equal(model.last_read, -EPERM);

    logmodel_run(&model, 4000); // quiet: no lease
    assert_false(cg_copyset_log_can_read(leader->log));
    uint64_t rounds = model.sent[CG_RAFT_HEARTBEAT];
    for (unsigned i = 0; i < 50; i++) {
        logmodel_read(&model, leader);
    }
    logmodel_run(&model, 10);
    assert_int_equal(model.reads_done, 51);
    assert_int_equal(model.last_read, 0);
    assert_int_equal(model.sent[CG_RAFT_HEARTBEAT], rounds + 2); // one round for all
    assert_true(cg_copyset_log_can_read(leader->log));

    logmodel_isolate(&model, leader, true);
    logmodel_run(&model, 500);
    assert_false(cg_copyset_log_can_read(leader->log));
    assert_true(leader->lease_end < model.now);
    logmodel_read(&model, leader);
    logmodel_run(&model, 3000);
    assert_int_equal(model.reads_done, 52);
    assert_int_equal(model.last_read, -EPERM);
    logmodel_destroy(&model);
}

static void members_come_and_go(void **state) {
    (void)state;
    logmodel_init(&model, 16, 3, CACHE);
    logmodel_write(&model, 50, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    struct logmodel_member *leaves = follower_of(leader);
    logmodel_add_blank(&model, 4);
    assert_int_equal(cg_copyset_log_change(leader->log, CG_RAFT_ADD_LEARNER, 4), 0);
    assert_int_equal(cg_copyset_log_change(leader->log, CG_RAFT_ADD_LEARNER, 5), -EAGAIN);
    logmodel_settle(&model);
    assert_int_equal(model.member[4].delivered, model.last);
    assert_int_equal(cg_copyset_log_change(leader->log, CG_RAFT_PROMOTE, 4), 0);
    logmodel_settle(&model);
    assert_int_equal(cg_copyset_log_change(leader->log, CG_RAFT_REMOVE, leaves->id), 0);
    logmodel_settle(&model);
    struct cg_copyset_log_status status = status_of(leader);
    assert_int_equal(status.config.count, 3);
    assert_int_equal(status.config_index, status.commit_index);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(status.config.member[i].id != leaves->id && !status.config.member[i].learner);
    }
    cg_copyset_log_stop(leaves->log);
    logmodel_write(&model, 50, 1);
    // The configuration outlives a checkpoint and a restart of all.
    logmodel_settle(&model);
    for (unsigned id = 1; id <= 4; id++) {
        struct logmodel_member *member = &model.member[id];
        if (member != leaves) {
            logmodel_checkpoint(member, UINT64_MAX);
            logmodel_crash(member, SIMDISK_DROP_ALL);
            logmodel_start(member);
        }
    }
    logmodel_write(&model, 10, 1);
    assert_int_equal(status_of(logmodel_leader(&model)).config.count, 3);
    // The leader itself leaves: the others go on.
    leader = logmodel_leader(&model);
    assert_int_equal(cg_copyset_log_change(leader->log, CG_RAFT_REMOVE, leader->id), 0);
    logmodel_run(&model, 3000);
    assert_ptr_not_equal(logmodel_leader(&model), leader);
    logmodel_write(&model, 10, 1);
    logmodel_destroy(&model);
}

// The one who stays may be elected by itself: from then on only what it promised holds.
static void leader_that_removes_itself_from_a_pair_has_a_lease_that_ends(void **state) {
    (void)state;
    logmodel_init(&model, 26, 2, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *leader = logmodel_leader(&model);
    logmodel_isolate(&model, leader, true);
    assert_int_equal(cg_copyset_log_change(leader->log, CG_RAFT_REMOVE, leader->id), 0);
    assert_int_equal(status_of(leader).config.count, 1);
    assert_true(cg_copyset_log_ready(leader->log));
    assert_true(leader->lease_end < model.now + CG_NS_PER_S);
    logmodel_destroy(&model);
}

// ---- Failure

static void disk_error_silences_a_member_and_the_others_go_on(void **state) {
    (void)state;
    logmodel_init(&model, 17, 3, CACHE);
    logmodel_write(&model, 20, 1);
    struct logmodel_member *old = logmodel_leader(&model);
    simdisk_fail_write(old->sim, 0, -EIO, true);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(logmodel_propose(&model, old, 1), 0);
    }
    logmodel_read(&model, old);
    logmodel_run(&model, 50);
    assert_int_equal(old->disk_failure, -EIO);
    assert_int_equal(model.failed, 5);
    assert_int_equal(model.last_failure, -EIO);
    assert_int_equal(model.reads_done, 1);
    assert_int_equal(logmodel_propose(&model, old, 1), -EIO);
    assert_int_equal(cg_copyset_log_transfer(old->log, 2), -EIO);
    assert_int_equal(old->lease_end, 0);
    assert_int_equal(status_of(old).role, CG_RAFT_RETIRED);
    old->up = false; // its machine does not matter any more
    assert_ptr_not_equal(logmodel_leader(&model), old);
    logmodel_write(&model, 50, 1);
    old->up = true;
    logmodel_destroy(&model);
}

// ---- All of it at once

struct fate {
    unsigned down_for; // ms
    unsigned cut_for;
};

static void disturb(struct fate *fates) {
    unsigned down = 0;
    for (unsigned id = 1; id <= 3; id++) {
        struct logmodel_member *member = &model.member[id];
        struct fate *fate = &fates[id];
        if (fate->down_for > 0 && --fate->down_for == 0) {
            logmodel_start(member);
        }
        if (fate->cut_for > 0 && --fate->cut_for == 0) {
            logmodel_isolate(&model, member, false);
        }
        down += !member->up;
    }
    struct logmodel_member *member = &model.member[1 + logmodel_below(&model, 3)];
    struct fate *fate = &fates[member->id];
    switch (logmodel_below(&model, 1500)) {
    case 0:
        if (member->up && down < 2) {
            logmodel_crash(member, (enum simdisk_crash)logmodel_below(&model, SIMDISK_CRASH_MODES));
            fate->down_for = 1 + logmodel_below(&model, 1500);
        }
        break;
    case 1:
        logmodel_isolate(&model, member, true);
        fate->cut_for = 1 + logmodel_below(&model, 1500);
        break;
    case 2:
    case 3:
        if (member->up) {
            logmodel_checkpoint(member, logmodel_below(&model, 2) ? UINT64_MAX : 0);
        }
        break;
    case 4:
        model.loss_percent = logmodel_below(&model, 3) * 10;
        break;
    case 5:
        if (member->up) {
            simdisk_delay_writes(member->sim, logmodel_below(&model, 100));
        }
        break;
    case 6:
        if (member->up && cg_copyset_log_ready(member->log)) {
            cg_copyset_log_transfer(member->log, 1 + member->id % 3);
        }
        break;
    default:
        break;
    }
}

// Copies of states that are asked for are made when both are there.
static void copy_states(void) {
    for (unsigned i = 0; i < 9; i++) {
        struct logmodel_member *leader = &model.member[1 + i / 3];
        struct logmodel_member *to = &model.member[1 + i % 3];
        if (!leader->up || !leader->copy_for[to->id]) {
            continue;
        }
        leader->copy_for[to->id] = false;
        struct cg_copyset_log_status status = status_of(leader);
        if (status.role == CG_RAFT_LEADER && to->up && !model.cut[leader->id][to->id] &&
            status.applied_index > status_of(to).commit_index) {
            logmodel_copy(&model, leader, to);
        } else {
            cg_copyset_log_copied(leader->log, to->id, 0, false);
        }
    }
}

static void random_life(uint64_t seed) {
    struct fate fates[4] = {{0}};
    logmodel_init(&model, seed, 3, 64U << 10);
    for (unsigned ms = 0; ms < 12000; ms++) {
        disturb(fates);
        for (unsigned id = 1; id <= 3; id++) {
            struct logmodel_member *member = &model.member[id];
            if (member->up && logmodel_below(&model, 4) == 0) {
                logmodel_propose(&model, member, logmodel_below(&model, 3));
                logmodel_read(&model, member);
            }
        }
        logmodel_run(&model, 1);
        copy_states();
    }
    model.loss_percent = 0;
    for (unsigned id = 1; id <= 3; id++) {
        logmodel_isolate(&model, &model.member[id], false);
        if (!model.member[id].up) {
            logmodel_start(&model.member[id]);
        }
    }
    for (unsigned ms = 0; ms < 3000; ms++) {
        logmodel_run(&model, 1);
        copy_states();
    }
    logmodel_settle(&model);
    assert_true(model.acked > 100);
    logmodel_destroy(&model);
}

static void random_lives_end_well(void **state) {
    (void)state;
    uint64_t first = getenv("COPYGATE_SEED") ? strtoull(getenv("COPYGATE_SEED"), NULL, 10) : 1000;
    uint64_t count = getenv("COPYGATE_SEEDS") ? strtoull(getenv("COPYGATE_SEEDS"), NULL, 10) : 12;
    for (uint64_t seed = first; seed < first + count; seed++) {
        random_life(seed);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_survive_encoding_and_damaged_ones_are_refused),
        cmocka_unit_test(sole_member_leads_and_delivers_its_entries),
        cmocka_unit_test(sole_member_finds_its_entries_after_a_power_loss),
        cmocka_unit_test(log_without_states_is_taken_over_from_an_earlier_version),
        cmocka_unit_test(three_members_agree_on_every_entry),
        cmocka_unit_test(lost_messages_are_made_up_for),
        cmocka_unit_test(idle_group_sends_nothing),
        cmocka_unit_test(follower_that_lost_power_catches_up),
        cmocka_unit_test(nothing_acknowledged_is_lost_when_all_lose_power),
        cmocka_unit_test(deposed_leader_fails_its_proposals_and_takes_the_new_ones_entries),
        cmocka_unit_test(entries_that_are_none_are_refused),
        cmocka_unit_test(slow_follower_is_served_from_the_disk),
        cmocka_unit_test(checkpoint_keeps_what_lagging_members_need),
        cmocka_unit_test(member_that_needs_recycled_entries_is_copied_the_state),
        cmocka_unit_test(copied_state_voids_a_log_that_lacks_its_entry),
        cmocka_unit_test(copying_that_is_given_up_leaves_the_log_as_it_was),
        cmocka_unit_test(entries_that_wait_for_their_group_do_not_hold_up_the_log_on_disk),
        cmocka_unit_test(entries_that_were_moved_are_committed_by_their_group_in_the_end),
        cmocka_unit_test(moving_entries_loses_none_of_them),
        cmocka_unit_test(move_is_void_once_its_entries_are_and_a_gap_otherwise),
        cmocka_unit_test(entry_that_is_refused_is_offered_again),
        cmocka_unit_test(leadership_is_handed_over_without_a_pause),
        cmocka_unit_test(terms_of_many_leaders_do_not_fill_the_memory),
        cmocka_unit_test(reads_are_answered_under_the_lease_and_by_asking),
        cmocka_unit_test(members_come_and_go),
        cmocka_unit_test(leader_that_removes_itself_from_a_pair_has_a_lease_that_ends),
        cmocka_unit_test(disk_error_silences_a_member_and_the_others_go_on),
        cmocka_unit_test(random_lives_end_well),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
