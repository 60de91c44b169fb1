// SPDX-License-Identifier: BSD-3-Clause
//
// Replicas that copy state from each other and mend each other's damage, on simulated disks and a
// simulated network. Arguments: [seeds [first seed [words of one test's name]]].
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/catchup_internal.h"
#include "replicamodel.h"

static void load(struct replicamodel *model, unsigned operations) {
    for (unsigned i = 0; i < operations; i++) {
        model_mutate(model);
        model_run(model, 20);
    }
}

static void require(const struct replicamodel *model, bool condition, const char *what) {
    if (!condition) {
        model_fail(model, what);
    }
}

// So much that the leader's log does not have the beginning any more.
static void load_until_recycled(struct replicamodel *model) {
    model_await_leader(model);
    struct cg_copyset_log_status status;
    unsigned leader = model_leader(model);
    cg_copyset_log_status(cg_copyset_raft(model_copyset(&model->member[leader])), &status);
    uint64_t last = status.last_index;
    for (unsigned rounds = 0; status.base_index <= last + 1; rounds++) {
        require(model, rounds < 2000, "the log is never recycled");
        load(model, 20);
        model_await_leader(model);
        leader = model_leader(model);
        cg_copyset_log_status(cg_copyset_raft(model_copyset(&model->member[leader])), &status);
    }
}

static struct replicamodel shared;

static uint64_t completed_at;

static bool copied(struct replicamodel *model) {
    model_mutate(model);
    return model->member[completed_at].store != NULL &&
           model_stats(&model->member[completed_at]).completed > 0;
}

static unsigned follower(struct replicamodel *model) {
    model_await_leader(model);
    unsigned leader = model_leader(model);
    for (;;) {
        unsigned at = (unsigned)model_pick(model, 3);
        if (at != leader && model->member[at].store != NULL) {
            return at;
        }
    }
}

// ---- A member that was away for long copies the state, under load

static void a_member_that_was_away_copies(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model_found(model);
    load(model, 200);
    unsigned away = follower(model);
    bool crashes = model_pick(model, 2) == 0;
    if (crashes) {
        model_crash(model, away, (enum simdisk_crash)model_pick(model, SIMDISK_CRASH_MODES));
    } else {
        model_isolate(model, away, true);
    }
    load_until_recycled(model);
    if (crashes) {
        model_start(model, away);
    } else {
        model_isolate(model, away, false);
    }
    completed_at = away;
    model_until(model, copied, "the state is not copied");
    load(model, 100);
    model_drain(model);
    model_check_equal(model);
    model_destroy(model);
}

static bool is_copied(struct replicamodel *model) {
    return model_stats(&model->member[completed_at]).completed > 0;
}

// It says nothing to the leader for longer than the leader waits for one that is silent, but to ask
// for the next blocks.
static void a_slow_copy_is_one(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model->rate = 72U << 10; // 3.5 s for a window of blocks
    model_found(model);
    load(model, 50);
    unsigned away = follower(model);
    model_crash(model, away, SIMDISK_DROP_ALL);
    load_until_recycled(model);
    for (unsigned chunk = 0; chunk < CHUNKS; chunk++) {
        model_write(model, chunk, 0);
        model_write(model, chunk, CHUNK_BLOCKS - 1);
    }
    model_drain(model);
    uint64_t began_ns = model->now;
    unsigned begun = model->calls[1];
    model_start(model, away);
    completed_at = away;
    model_until(model, is_copied, "the state is not copied");
    require(model, model->now - began_ns > 35 * CG_NS_PER_S, "it was not slow");
    require(model, model->calls[1] == begun + 1, "it began anew");
    model_check_equal(model);
    model_destroy(model);
}

// What a leader says of the members makes no sense, a few times.
static void a_state_that_makes_no_sense_is_refused(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model_found(model);
    load(model, 50);
    unsigned away = follower(model);
    model_crash(model, away, SIMDISK_DROP_ALL);
    load_until_recycled(model);
    model->garbled_members = 3;
    model_start(model, away);
    completed_at = away;
    model_until(model, copied, "the state is not copied");
    require(model, model->garbled_members == 0, "nothing was refused");
    model_drain(model);
    model_check_equal(model);
    model_destroy(model);
}

// ---- A blank one joins as a learner

static bool is_learner_equal(struct replicamodel *model) {
    model_mutate(model);
    unsigned leader = model_leader(model);
    if (leader == MEMBERS) {
        return false;
    }
    struct cg_copyset_log *log = cg_copyset_raft(model_copyset(&model->member[leader]));
    return cg_copyset_log_change(log, CG_RAFT_PROMOTE, model->member[completed_at].id) == 0;
}

static bool change_begun(struct replicamodel *model) {
    model_mutate(model);
    unsigned leader = model_leader(model);
    if (leader == MEMBERS) {
        return false;
    }
    struct cg_copyset_log *log = cg_copyset_raft(model_copyset(&model->member[leader]));
    return cg_copyset_log_change(log, CG_RAFT_ADD_LEARNER, model->member[completed_at].id) == 0;
}

static void a_wiped_member_joins_again(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model_found(model);
    load_until_recycled(model);
    unsigned wiped = follower(model);
    model_crash(model, wiped, SIMDISK_DROP_ALL);
    load(model, 50);
    model_wipe(model, wiped);
    completed_at = wiped;
    model_until(model, change_begun, "the learner is not added");
    model_until(model, is_learner_equal, "the learner is not promoted");
    require(model, model_stats(&model->member[wiped]).completed > 0, "it did not copy");
    load(model, 100);
    model_drain(model);
    model_check_equal(model);
    model_destroy(model);
}

// ---- Whatever happens meanwhile

// It does not need a copy, or has one.
static bool is_following(struct replicamodel *model) {
    unsigned leader = model_leader(model);
    struct cg_copyset *copyset = model_copyset(&model->member[completed_at]);
    return copied(model) || (leader < MEMBERS && copyset != NULL && !copyset->paused &&
                             cg_copyset_applied(copyset) + 100 >=
                                 cg_copyset_applied(model_copyset(&model->member[leader])));
}

static bool is_incomplete(struct replicamodel *model) {
    const struct cg_copyset *copyset = model_copyset(&model->member[completed_at]);
    return is_following(model) || (copyset != NULL && copyset->incomplete);
}

// Before the next fault: any time, or until a certain moment of the copying and a little longer.
static void let_pass(struct replicamodel *model, unsigned away) {
    completed_at = away;
    uint64_t dice = model_pick(model, 3);
    unsigned turns = 10 + (unsigned)model_pick(model, dice == 0 ? 6000 : 600);
    if (dice == 1) {
        model_until(model, is_incomplete, "copying does not begin");
    } else if (dice == 2) {
        model_until(model, is_following, "the state is not copied");
    }
    for (unsigned i = 0; i < turns; i++) {
        if (i % 20 == 0) {
            model_mutate(model);
        }
        model_turn(model);
    }
}

// Crashes of the receiver, of the leader, cuts, at any moment; in the end it is complete.
static void copying_survives_everything(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model->lose_calls = model_pick(model, 2) == 0;
    model->rate = model_pick(model, 2) == 0 ? 20U << 20 : 0;
    model_found(model);
    load(model, 100);
    unsigned away = follower(model);
    model->focus = (unsigned)model_pick(model, CHUNKS + 1);
    load(model, (unsigned)model_pick(model, 100));
    model_crash(model, away, (enum simdisk_crash)model_pick(model, SIMDISK_CRASH_MODES));
    load_until_recycled(model);
    model->focus = (unsigned)model_pick(model, CHUNKS + 1);
    model_start(model, away);
    for (unsigned faults = 1 + (unsigned)model_pick(model, 8); faults > 0; faults--) {
        let_pass(model, away);
        unsigned victim = model_pick(model, 3) == 0 ? model_leader(model) : away;
        if (victim == MEMBERS) {
            victim = away;
        }
        if (model_pick(model, 3) == 0) {
            model_isolate(model, victim, true);
            model_run(model, 1000 + (unsigned)model_pick(model, 30000));
            model_isolate(model, victim, false);
        } else {
            model_crash(model, victim, (enum simdisk_crash)model_pick(model, SIMDISK_CRASH_MODES));
            model_run(model, (unsigned)model_pick(model, 20000));
            model_start(model, victim);
        }
    }
    load(model, 50);
    model_drain(model);
    model_check_equal(model);
    model_destroy(model);
}

static bool is_half_copied(struct replicamodel *model) {
    struct cg_copyset *copyset = model_copyset(&model->member[completed_at]);
    model_mutate(model);
    return copyset != NULL && copyset->incomplete;
}

// One is half-copied, one restarts, the third is away: the two are a majority. The one that
// restarts cannot know what is committed, nor apply it, before the other one has its state.
static void two_that_need_each_other_go_on(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model->rate = 4U << 20;
    model_found(model);
    load(model, 100);
    unsigned away = follower(model);
    model_crash(model, away, SIMDISK_DROP_ALL);
    load_until_recycled(model);
    model_start(model, away);
    completed_at = away;
    model_until(model, is_half_copied, "copying does not begin");
    unsigned third = follower(model);
    while (third == away) {
        third = follower(model);
    }
    unsigned other = 3 - away - third;
    model_crash(model, third, SIMDISK_DROP_ALL);
    model_crash(model, other, (enum simdisk_crash)model_pick(model, SIMDISK_CRASH_MODES));
    model_start(model, other);
    load(model, 20);
    model_drain(model);
    model_start(model, third);
    model_check_equal(model);
    model_destroy(model);
}

// ---- Damage

static bool nothing_dirty(struct replicamodel *model) {
    for (unsigned at = 0; at < MEMBERS; at++) {
        struct cg_store *store = model->member[at].store;
        if (store != NULL && (store->dirty_count > 0 || cg_store_checkpointing(store))) {
            cg_store_checkpoint(store);
            return false;
        }
    }
    return true;
}

// Some load, then a block that surely holds data; all of it on the disks.
static void settle_with_block(struct replicamodel *model) {
    model_found(model);
    load(model, 50);
    model_write(model, 1, 3);
    model_drain(model);
    model_check_equal(model);
    model_until(model, nothing_dirty, "checkpoints do not end");
}

static void flip(struct replicamodel *model, unsigned at, unsigned chunk, uint64_t offset) {
    char path[CG_CHUNK_PATH_MAX];
    cg_chunk_path(model_copyset(&model->member[at]), chunk, path);
    require(model,
            simdisk_flip(model->member[at].sim, path, offset, (unsigned)model_pick(model, 8)) == 0,
            "nothing to flip");
}

static bool scrubbed(struct replicamodel *model) {
    for (unsigned at = 0; at < 3; at++) {
        struct cg_store_stats stats;
        cg_store_stats(model->member[at].store, &stats);
        if (stats.scrub.completed < 1 || stats.scrub.bad_blocks > 0) {
            return false;
        }
    }
    return true;
}

static uint64_t mended_blocks(struct replicamodel *model) {
    uint64_t sum = 0;
    for (unsigned at = 0; at < 3; at++) {
        struct cg_catchup_stats stats = model_stats(&model->member[at]);
        sum += stats.mended_blocks + stats.mended_chunks;
    }
    return sum;
}

// Blocks of any member's: the scrub finds them, others have them.
static void flipped_bits_are_found_and_mended(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model->options.scrub_rate = 64U << 20;
    model_found(model);
    load(model, 150);
    for (unsigned chunk = 0; chunk < 3; chunk++) {
        model_write(model, chunk, 7 * chunk);
    }
    model_drain(model);
    model_check_equal(model);
    model_until(model, nothing_dirty, "checkpoints do not end");
    for (unsigned at = 0; at < 3; at++) { // each block is bad at one of them
        flip(model, at, at, CG_CHUNK_DATA_OFFSET + UINT64_C(7) * at * CG_BLOCK_SIZE + 100);
    }
    for (unsigned at = 0; at < 3; at++) {
        require(model, cg_store_scrub(model->member[at].store, 1) == 0, "no scrub");
    }
    model_until(model, scrubbed, "the damage is not mended");
    require(model, mended_blocks(model) >= 3, "nobody mended anything");
    model_check_equal(model);
    model_destroy(model);
}

// Reads and unaligned writes at the leader, before any scrub.
static void a_read_of_a_bad_block_gets_good_data(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    settle_with_block(model);
    model_await_leader(model);
    unsigned leader = model_leader(model);
    flip(model, leader, 1, CG_CHUNK_DATA_OFFSET + 3 * CG_BLOCK_SIZE + 9);
    model_read(model, 1, 3);
    require(model, model_leader(model) == leader, "another one leads");
    require(model, mended_blocks(model) == 1, "it was not mended");
    model_check_equal(model);
    model_destroy(model);
}

// Copies have taken all of the rate for a while.
static void a_mend_does_not_wait_for_copies(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    settle_with_block(model);
    model_await_leader(model);
    unsigned leader = model_leader(model);
    for (unsigned at = 0; at < 3; at++) {
        model->member[at].catchup->pace.due_ns = model->now + 60 * CG_NS_PER_S;
    }
    flip(model, leader, 1, CG_CHUNK_DATA_OFFSET + 3 * CG_BLOCK_SIZE + 9);
    model_read(model, 1, 3);
    require(model, model_leader(model) == leader, "another one leads");
    for (unsigned at = 0; at < 3; at++) {
        model->member[at].catchup->pace.due_ns = 0;
    }
    model_check_equal(model);
    model_destroy(model);
}

// A chunk whose metadata cannot be read at a start, at the leader or elsewhere.
static void bad_metadata_is_mended(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model_found(model);
    load(model, 100);
    model_write(model, 2, 5);
    model_drain(model);
    model_check_equal(model);
    model_until(model, nothing_dirty, "checkpoints do not end");
    unsigned at = (unsigned)model_pick(model, 3);
    flip(model, at, 2, CG_CHUNK_SLOT_STRIDE * (uint64_t)(model_pick(model, 2)) + 600);
    cg_chunks_forget(model_copyset(&model->member[at])); // as if others had been used more
    load(model, 60);
    model_drain(model);
    model_read(model, 2, 5);
    model_check_equal(model);
    model_destroy(model);
}

static void print_line(void *context, enum cg_log_level level, const char *line) {
    (void)context;
    fprintf(stderr, "%10.3f %d %s\n", (double)shared.now / (double)CG_NS_PER_S, (int)level, line);
}

// An unaligned write needs the rest of a block that is bad.
static void a_write_into_a_bad_block_keeps_the_rest(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    settle_with_block(model);
    model_await_leader(model);
    flip(model, model_leader(model), 1, CG_CHUNK_DATA_OFFSET + 3 * CG_BLOCK_SIZE + 3000);
    require(model, model_unaligned(model, 1, 3), "the write failed");
    require(model, mended_blocks(model) == 1, "nothing was mended");
    model_check_equal(model);
    model_destroy(model);
}

static bool slots_good(struct replicamodel *model) {
    return model->member[0].store->bad.count == 0;
}

static bool slot_found(struct replicamodel *model) {
    return model->member[0].store->bad.count > 0;
}

// A metadata slot goes bad while the chunk is in memory: it is written anew.
static void a_bad_slot_is_written_anew(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model->options.scrub_rate = 64U << 20;
    settle_with_block(model);
    flip(model, 0, 1, CG_CHUNK_SLOT_STRIDE * model_pick(model, 2) + 700);
    require(model, cg_store_scrub(model->member[0].store, 1) == 0, "no scrub");
    model_until(model, slot_found, "the scrub does not find it");
    model_until(model, slots_good, "it is not written anew");
    model_crash(model, 0, SIMDISK_DROP_ALL);
    model_start(model, 0);
    model_check_equal(model);
    model_destroy(model);
}

static bool nothing_bad(struct replicamodel *model) {
    for (unsigned at = 0; at < 3; at++) {
        if (model->member[at].store->bad.count > 0) {
            return false;
        }
    }
    return true;
}

static unsigned mend_answers;
static int mend_answer;

static void mend_answered(struct cg_mend *mend, int status) {
    (void)mend;
    mend_answers++;
    mend_answer = status;
}

static bool is_mend_answered(struct replicamodel *model) {
    (void)model;
    return mend_answers > 0;
}

static int pause_answer;

static void pause_answered(void *user, int status) {
    (void)user;
    pause_answer = status;
}

static bool is_paused(struct replicamodel *model) {
    (void)model;
    return pause_answer != 1;
}

static bool in_memory(const struct cg_copyset *copyset) {
    for (unsigned chunk = 0; chunk < CHUNKS; chunk++) {
        if (cg_chunk_find(copyset, chunk) != NULL) {
            return true;
        }
    }
    return false;
}

// What a mend takes into memory while the files are replaced would be older than the files.
static void a_mend_keeps_out_of_a_copy(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    settle_with_block(model);
    struct member *member = &model->member[follower(model)];
    struct cg_copyset *copyset = model_copyset(member);
    pause_answer = 1;
    mend_answers = 0;
    cg_damage_found(copyset, 1, 0, 3, "so says the test");
    struct cg_mend mend = {
        .copyset = copyset, .chunk_id = 1, .first = 3, .count = 1, .done = mend_answered};
    cg_catchup_mend(member->catchup, &mend); // it looks at the chunk at the next turn
    cg_copyset_pause(copyset, pause_answered, NULL);
    model_until(model, is_mend_answered, "the mend does not end");
    require(model, mend_answer != 0, "it was mended");
    model_until(model, is_paused, "it is not paused");
    require(model, pause_answer == 0, "it cannot be paused");
    model_run(model, 20000); // other menders have their turns
    require(model, !in_memory(copyset), "a chunk is in memory");
    cg_copyset_resume(copyset);
    model_until(model, nothing_bad, "it is not mended later");
    model_check_equal(model);
    model_destroy(model);
}

// A block that is bad everywhere stays bad: where it is copied to, too. Nobody ever reads it wrong.
static void what_is_bad_everywhere_stays_bad(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model_found(model);
    load_until_recycled(model);
    unsigned wiped = follower(model);
    model_crash(model, wiped, SIMDISK_DROP_ALL);
    model_write(model, 1, 3);
    model_drain(model);
    model->locked[1][3] = true; // nobody writes it, nor deletes the chunk
    model_check_equal(model);
    model_until(model, nothing_dirty, "checkpoints do not end");
    for (unsigned at = 0; at < 3; at++) {
        if (at != wiped) {
            flip(model, at, 1, CG_CHUNK_DATA_OFFSET + 3 * CG_BLOCK_SIZE + 77);
        }
    }
    model_wipe(model, wiped);
    completed_at = wiped;
    model_until(model, change_begun, "the learner is not added");
    model_until(model, is_copied, "the state is not copied");
    model_drain(model);
    model_run(model, 20000);
    for (unsigned at = 0; at < 3; at++) {
        require(model, model_look(model, at, 1, 3) == STATUS(CRC_FAIL), "it is not bad");
    }
    model->locked[1][3] = false;
    model_write(model, 1, 3);
    model_drain(model);
    model_check_equal(model);
    model_destroy(model);
}

// The receiver's disk is too small for a while.
static void a_full_disk_is_waited_for(uint64_t seed) {
    struct replicamodel *model = &shared;
    model_create(model, seed);
    model->disk_bytes = 24U << 20;
    model_found(model);
    load_until_recycled(model);
    unsigned wiped = follower(model);
    model_crash(model, wiped, SIMDISK_DROP_ALL);
    model_wipe(model, wiped);
    completed_at = wiped;
    struct cg_disk *disk = simdisk_disk(model->member[wiped].sim);
    int handle = disk->ops->open(disk, "others", O_RDWR | O_CREAT);
    uint64_t free_bytes;
    uint64_t total;
    require(model, disk->ops->space(disk, &free_bytes, &total) == 0, "no space is told");
    uint64_t left = 512U << 10;
    require(model,
            free_bytes > left && disk->ops->allocate(disk, handle, 0, free_bytes - left) == 0,
            "it is not to be filled");
    model_until(model, change_begun, "the learner is not added");
    model_run(model, 100000);
    require(model, model_stats(&model->member[wiped]).completed == 0, "there was room");
    disk->ops->close(disk, handle);
    require(model, disk->ops->unlink(disk, "others") == 0, "others stay");
    model_until(model, is_learner_equal, "the learner is not promoted");
    model_drain(model);
    model_check_equal(model);
    model_destroy(model);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(uint64_t seed);
        unsigned share; // of the seeds, one in so many
    } tests[] = {
        {"a member that was away copies", a_member_that_was_away_copies, 2},
        {"a slow copy is one", a_slow_copy_is_one, 4},
        {"a state that makes no sense is refused", a_state_that_makes_no_sense_is_refused, 4},
        {"a wiped member joins again", a_wiped_member_joins_again, 2},
        {"copying survives everything", copying_survives_everything, 1},
        {"two that need each other go on", two_that_need_each_other_go_on, 2},
        {"flipped bits are found and mended", flipped_bits_are_found_and_mended, 2},
        {"a read of a bad block gets good data", a_read_of_a_bad_block_gets_good_data, 2},
        {"a mend does not wait for copies", a_mend_does_not_wait_for_copies, 4},
        {"bad metadata is mended", bad_metadata_is_mended, 2},
        {"a write into a bad block keeps the rest", a_write_into_a_bad_block_keeps_the_rest, 4},
        {"a bad slot is written anew", a_bad_slot_is_written_anew, 4},
        {"a mend keeps out of a copy", a_mend_keeps_out_of_a_copy, 4},
        {"what is bad everywhere stays bad", what_is_bad_everywhere_stays_bad, 4},
        {"a full disk is waited for", a_full_disk_is_waited_for, 4},
    };
    unsigned seeds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 10;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const char *only = argc > 3 ? argv[3] : NULL;
    if (getenv("COPYGATE_VERBOSE") != NULL) {
        cg_log_set_sink(print_line, NULL, CG_LOG_INFO);
    }
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        if (only != NULL && strstr(tests[i].name, only) == NULL) {
            continue;
        }
        unsigned count = seeds / tests[i].share + (seeds % tests[i].share != 0);
        for (unsigned n = 0; n < count; n++) {
            tests[i].run(first + n);
        }
        printf("%s: %u seeds\n", tests[i].name, count);
        fflush(stdout);
    }
    return 0;
}
