// SPDX-License-Identifier: BSD-3-Clause
//
// The scrub: reads all blocks of the disk, one piece after the other, and checks their CRCs, so
// that damage is found while there may be another copy, not when the data is needed. scrub_plan.c
// decides when; this is what happens then. At most one operation is under way, into a buffer of its
// own.
//
// It checks the medium (scrub_read.c), so it may compare only what is known to be there: a block
// that was applied and has not been synced since is passed over. A pass begins with a checkpoint,
// so these are the blocks that were written while it went on. A block that does not match is read
// again under its lock, with nothing of it on its way, before it is called bad.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/scrub_internal.h"

#define REST_MAX_NS     (10 * CG_NS_PER_S)
#define SETTLE_LIMIT_NS (60 * CG_NS_PER_S)
#define SETTLE_POLL_NS  (20 * CG_NS_PER_MS)

bool cg_scrub_is_short(int64_t result) {
    return result == -EMFILE || result == -ENFILE || result == -ENOMEM || result == -EINTR ||
           result == -EAGAIN;
}

void cg_scrub_look_in(struct cg_store *store, uint64_t wait_ns) {
    struct cg_scrub *scrub = &store->scrub;
    if (scrub->stopped || store->disk_error != 0) {
        cg_timer_disarm(&scrub->timer);
        if (store->disk_error == 0 && !scrub->active && cg_scrub_unsaved(store)) {
            cg_scrub_save(store);
        }
        return;
    }
    uint64_t wait = wait_ns < REST_MAX_NS ? wait_ns : REST_MAX_NS;
    if (cg_timer_arm(store->reactor, &scrub->timer, cg_reactor_now(store->reactor) + wait) != 0) {
        cg_log(CG_LOG_ERROR, "out of memory: the scrub ends");
        scrub->stopped = true;
    }
}

// ---- What comes next

static struct cg_copyset *copyset_from(const struct cg_store *store, uint64_t group) {
    struct cg_copyset *found = NULL;
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        struct cg_copyset *copyset = store->copysets[i];
        if (!copyset->paused && copyset->group >= group &&
            (found == NULL || copyset->group < found->group)) {
            found = copyset;
        }
    }
    return found;
}

void cg_scrub_set_position(struct cg_scrub *scrub, uint64_t group, uint64_t chunk_id,
                           uint32_t block) {
    scrub->record.position = (struct cg_scrub_position){group, chunk_id, block};
    scrub->moved = true;
}

static void pass_over(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    cg_scrub_complete(&scrub->record, cg_wall_us() / 1000000U);
    scrub->moved = true;
    scrub->saved_ns = 0; // save it at once
    scrub->listed = false;
    cg_log(CG_LOG_INFO,
           "scrub: a pass is complete, %" PRIu64 " blocks checked, %" PRIu64
           " written meanwhile, %" PRIu64 " newly found bad, %" PRIu32 " bad in all",
           scrub->record.checked, scrub->record.skipped, scrub->record.found, store->bad.count);
    cg_scrub_look_in(store, 0);
}

static void choose_next(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_position *position = &scrub->record.position;
    if (scrub->listed && scrub->id_at == scrub->id_count) {
        scrub->listed = false;
        if (!scrub->list_cut) {
            cg_scrub_set_position(scrub, position->group + 1, 0, 0);
        }
    }
    struct cg_copyset *copyset = copyset_from(store, position->group);
    if (copyset == NULL) {
        pass_over(store);
        return;
    }
    if (copyset->group != position->group) {
        cg_scrub_set_position(scrub, copyset->group, 0, 0);
        scrub->listed = false;
    }
    // What was written before the start, and is not known to be committed yet, is not compared.
    if (!cg_copyset_recovered(copyset)) {
        cg_scrub_set_position(scrub, copyset->group + 1, 0, 0);
        cg_scrub_look_in(store, 0);
        return;
    }
    if (!scrub->listed) {
        cg_scrub_list(store, copyset);
        return;
    }
    uint64_t id = scrub->ids[scrub->id_at++];
    uint32_t first = id == position->chunk_id ? position->block : 0;
    cg_scrub_set_position(scrub, copyset->group, id, first);
    scrub->target = (struct cg_scrub_target){
        .set = true,
        .of_pass = true,
        .stage = CG_SCRUB_PROBE,
        .copyset = copyset,
        .chunk_id = id,
        .first = first,
        .end = store->format.chunk_size / CG_BLOCK_SIZE,
    };
    cg_scrub_look_in(store, 0);
}

// A block that is known to be bad, to be looked at again: it may have been mended, or the table may
// be older than the disk.
static bool choose_known(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_bad_block *bad;
    while ((bad = cg_bad_blocks_unseen(&store->bad, scrub->round)) != NULL) {
        struct cg_copyset *copyset = cg_copyset_of_group(store, bad->group);
        bool is_slot = CG_IS_BAD_SLOT(bad->block);
        uint32_t end = store->format.chunk_size / CG_BLOCK_SIZE;
        if (copyset == NULL || (!is_slot && bad->block >= end)) {
            cg_bad_blocks_clear(&store->bad, bad->group, bad->chunk_id, bad->block, 1);
            continue;
        }
        if (!cg_copyset_recovered(copyset) || copyset->paused) {
            continue;
        }
        scrub->target = (struct cg_scrub_target){
            .set = true,
            .stage = CG_SCRUB_PROBE,
            .copyset = copyset,
            .chunk_id = bad->chunk_id,
            .first = is_slot ? 0 : bad->block,
            .end = is_slot ? 0 : bad->block + 1,
        };
        return true;
    }
    return false;
}

void cg_scrub_target_done(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_target *target = &scrub->target;
    struct cg_chunk *chunk = cg_chunk_find(target->copyset, target->chunk_id);
    if (target->brought && chunk != NULL && chunk->state == CG_CHUNK_READY && chunk->refs == 0 &&
        !cg_list_linked(&chunk->dirty)) {
        cg_chunk_cool(chunk);
    }
    target->set = false;
    if (target->of_pass && scrub->record.running) {
        cg_scrub_set_position(scrub, target->copyset->group, target->chunk_id + 1, 0);
    }
    cg_scrub_look_in(store, 0);
}

// ---- Going on

static void settle_first(struct cg_store *store) {
    store->scrub.settle = 2;
    store->scrub.settle_until_ns = cg_reactor_now(store->reactor) + SETTLE_LIMIT_NS;
}

static void begin(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    cg_scrub_begin(&scrub->record, cg_wall_us() / 1000000U);
    scrub->moved = true;
    scrub->listed = false;
    scrub->round++;
    settle_first(store);
    cg_log(CG_LOG_INFO, "scrub: a pass begins");
    cg_scrub_look_in(store, 0);
}

// Before a pass, and before one goes on after a restart, what was written so far goes to the
// medium, so that it can be compared. True while that is under way. A checkpoint that was running
// already may have missed something: after it comes another one.
static bool settling(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    if (cg_reactor_now(store->reactor) >= scrub->settle_until_ns) {
        scrub->settle = 0;
    }
    if (scrub->settle > 0 && !cg_store_checkpointing(store)) {
        scrub->settle--;
        if (scrub->settle > 0) {
            cg_store_checkpoint(store);
        }
    }
    if (scrub->settle > 0) {
        cg_scrub_look_in(store, SETTLE_POLL_NS);
    }
    return scrub->settle > 0;
}

// Requests that wait for the disk. Those that the page cache serves are over by the time anyone
// could look.
static bool is_busy(const struct cg_store *store) {
    return store->reads_active > 0 ||
           store->ops_active > store->ops_parked + store->stalled_count + store->ops_decided ||
           cg_store_checkpointing(store);
}

static void look(struct cg_timer *timer) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(timer, struct cg_scrub, timer);
    struct cg_store *store = CG_CONTAINER_OF(scrub, struct cg_store, scrub);
    if (scrub->active || scrub->stopped || store->disk_error != 0) {
        return;
    }
    if (cg_scrub_save_due(store)) {
        cg_scrub_save(store);
        return;
    }
    struct cg_scrub_view view = {
        .now_ns = cg_reactor_now(store->reactor),
        .wall_s = cg_wall_us() / 1000000U,
        .busy = is_busy(store),
    };
    bool known = scrub->pace.rate != 0 && (scrub->target.set || choose_known(store));
    uint64_t wait = known ? cg_scrub_pause(&scrub->pace, &view) : 0;
    if (known) {
        if (wait > 0) {
            cg_scrub_look_in(store, wait);
        } else {
            cg_scrub_go_on(store);
        }
        return;
    }
    struct cg_scrub_decision decision = cg_scrub_decide(&scrub->record, &scrub->pace, &view);
    switch (decision.step) {
    case CG_SCRUB_REST:
        cg_scrub_look_in(store, decision.wait_ns);
        break;
    case CG_SCRUB_BEGIN:
        begin(store);
        break;
    case CG_SCRUB_CHECK:
        if (!settling(store)) {
            choose_next(store);
        }
        break;
    }
}

int cg_store_scrub(struct cg_store *store, uint64_t request) {
    struct cg_scrub *scrub = &store->scrub;
    if (scrub->pace.rate == 0 || scrub->stopped) {
        return -ENOTSUP;
    }
    cg_scrub_ask(&scrub->record, request);
    scrub->moved = true;
    if (!scrub->active) {
        if (!scrub->record.running) {
            scrub->target.set = false;
        }
        cg_scrub_look_in(store, 0);
    }
    return 0;
}

void cg_store_scrub_stop(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    if (scrub->stopped) {
        return;
    }
    scrub->stopped = true;
    cg_timer_disarm(&scrub->timer);
    if (!scrub->active && cg_scrub_unsaved(store) && store->disk_error == 0) {
        cg_scrub_save(store);
    }
}

int cg_scrub_create(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    scrub->timer.fire = look;
    scrub->round = 1;
    scrub->pace.rate = store->options.scrub_rate;
    scrub->pace.period_s = store->options.scrub_period_s;
    scrub->read.disk = store->disk;
    scrub->file = malloc(CG_SCRUB_FILE_MAX);
    scrub->read.data = aligned_alloc(CG_BLOCK_SIZE, CG_SCRUB_PIECE_BLOCKS * CG_BLOCK_SIZE);
    if (scrub->file == NULL || scrub->read.data == NULL) {
        return -ENOMEM;
    }
    cg_scrub_load_saved(store);
    return 0;
}

void cg_scrub_start(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    scrub->saved_change = 0; // replay may have mended what was loaded
    settle_first(store);
    cg_scrub_look_in(store, 0);
}

void cg_scrub_destroy(struct cg_store *store) {
    cg_timer_disarm(&store->scrub.timer);
    free(store->scrub.file);
    free(store->scrub.read.data);
}
