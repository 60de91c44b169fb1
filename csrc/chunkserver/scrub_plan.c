// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/scrub_plan.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "chunkserver/bytes.h"

#define LOOK_NS  (10 * CG_NS_PER_S) // the wall clock may be set: it is looked at this often
#define YIELD_NS (2 * CG_NS_PER_MS)

#define MAGIC       UINT64_C(0x3142555243534743) // "CGSCRUB1"
#define VERSION     1U
#define HEAD        128U
#define RECORD_SIZE 32U

void cg_scrub_ask(struct cg_scrub_record *record, uint64_t request) {
    if (request <= record->request || request <= record->queued || request <= record->completed) {
        return;
    }
    record->queued = request;
    if (record->running && record->request == 0) {
        record->running = false;
    }
}

void cg_scrub_begin(struct cg_scrub_record *record, uint64_t wall_s) {
    record->running = true;
    record->request = record->queued;
    record->queued = 0;
    record->position = (struct cg_scrub_position){0};
    record->started_s = wall_s;
    record->checked = 0;
    record->skipped = 0;
    record->found = 0;
}

void cg_scrub_complete(struct cg_scrub_record *record, uint64_t wall_s) {
    record->running = false;
    record->completed_s = wall_s;
    if (record->request > record->completed) {
        record->completed = record->request;
    }
}

void cg_scrub_charge(struct cg_scrub_pace *pace, uint64_t bytes, uint64_t began_ns,
                     uint64_t ended_ns) {
    // A piece is at most 16 MiB: no overflow.
    uint64_t interval = pace->rate != 0 ? bytes * CG_NS_PER_S / pace->rate : 0;
    uint64_t took = ended_ns > began_ns ? ended_ns - began_ns : 0;
    uint64_t by_rate = began_ns + interval;
    uint64_t by_disk = ended_ns + took;
    pace->due_ns = by_rate > by_disk ? by_rate : by_disk;
    uint64_t spent = pace->due_ns - began_ns;
    pace->yield_ns = pace->due_ns + (CG_SCRUB_BUSY_SLOWDOWN - 1) * spent;
}

static struct cg_scrub_decision rest(uint64_t wait_ns) {
    return (struct cg_scrub_decision){CG_SCRUB_REST, wait_ns};
}

static struct cg_scrub_decision decide_begin(const struct cg_scrub_record *record,
                                             const struct cg_scrub_pace *pace,
                                             const struct cg_scrub_view *view) {
    // A start in the future: the clock was set back, and nobody knows how long ago it was.
    bool due = record->started_s == 0 || view->wall_s < record->started_s ||
               view->wall_s - record->started_s >= pace->period_s;
    if (record->queued != 0 || due) {
        return (struct cg_scrub_decision){CG_SCRUB_BEGIN, 0};
    }
    return rest(LOOK_NS);
}

uint64_t cg_scrub_pause(const struct cg_scrub_pace *pace, const struct cg_scrub_view *view) {
    if (view->now_ns < pace->due_ns) {
        return pace->due_ns - view->now_ns;
    }
    if (view->busy && view->now_ns < pace->yield_ns) {
        uint64_t left = pace->yield_ns - view->now_ns;
        return left < YIELD_NS ? left : YIELD_NS;
    }
    return 0;
}

struct cg_scrub_decision cg_scrub_decide(const struct cg_scrub_record *record,
                                         const struct cg_scrub_pace *pace,
                                         const struct cg_scrub_view *view) {
    if (pace->rate == 0) {
        return rest(UINT64_MAX);
    }
    if (!record->running) {
        return decide_begin(record, pace, view);
    }
    uint64_t wait_ns = cg_scrub_pause(pace, view);
    return wait_ns > 0 ? rest(wait_ns) : (struct cg_scrub_decision){CG_SCRUB_CHECK, 0};
}

// ---- The file

static uint32_t crc_of(const uint8_t *data, size_t length) {
    uint8_t head[HEAD];
    memcpy(head, data, sizeof(head));
    cg_put_u32(head + 12, 0);
    return cg_crc32c(cg_crc32c(0, head, sizeof(head)), data + HEAD, length - HEAD);
}

size_t cg_scrub_encode(const struct cg_scrub_record *record, const struct cg_bad_blocks *bad,
                       uint8_t *out) {
    size_t length = HEAD + (size_t)bad->count * RECORD_SIZE;
    memset(out, 0, length);
    cg_put_u64(out, MAGIC);
    cg_put_u32(out + 8, VERSION);
    cg_put_u32(out + 16, record->running ? 1 : 0);
    cg_put_u32(out + 20, bad->count);
    cg_put_u64(out + 24, record->request);
    cg_put_u64(out + 32, record->queued);
    cg_put_u64(out + 40, record->completed);
    cg_put_u64(out + 48, record->position.group);
    cg_put_u64(out + 56, record->position.chunk_id);
    cg_put_u32(out + 64, record->position.block);
    cg_put_u32(out + 68, bad->full ? 1 : 0);
    cg_put_u64(out + 72, record->started_s);
    cg_put_u64(out + 80, record->completed_s);
    cg_put_u64(out + 88, record->checked);
    cg_put_u64(out + 96, record->skipped);
    cg_put_u64(out + 104, record->found);
    uint8_t *at = out + HEAD;
    for (uint32_t i = 0; i < bad->count; i++, at += RECORD_SIZE) {
        cg_put_u64(at, bad->item[i].group);
        cg_put_u64(at + 8, bad->item[i].chunk_id);
        cg_put_u64(at + 16, bad->item[i].file_id);
        cg_put_u32(at + 24, bad->item[i].block);
    }
    cg_put_u32(out + 12, crc_of(out, length));
    return length;
}

int cg_scrub_decode(const uint8_t *in, size_t length, struct cg_scrub_record *record,
                    struct cg_bad_blocks *bad) {
    if (length < HEAD || cg_get_u64(in) != MAGIC || cg_get_u32(in + 8) != VERSION ||
        cg_get_u32(in + 20) > CG_BAD_BLOCKS_MAX ||
        length != HEAD + (size_t)cg_get_u32(in + 20) * RECORD_SIZE ||
        cg_get_u32(in + 12) != crc_of(in, length)) {
        return -EBADMSG;
    }
    *record = (struct cg_scrub_record){
        .running = cg_get_u32(in + 16) != 0,
        .request = cg_get_u64(in + 24),
        .queued = cg_get_u64(in + 32),
        .completed = cg_get_u64(in + 40),
        .position = {cg_get_u64(in + 48), cg_get_u64(in + 56), cg_get_u32(in + 64)},
        .started_s = cg_get_u64(in + 72),
        .completed_s = cg_get_u64(in + 80),
        .checked = cg_get_u64(in + 88),
        .skipped = cg_get_u64(in + 96),
        .found = cg_get_u64(in + 104),
    };
    bad->count = cg_get_u32(in + 20);
    bad->full = cg_get_u32(in + 68) != 0;
    const uint8_t *at = in + HEAD;
    for (uint32_t i = 0; i < bad->count; i++, at += RECORD_SIZE) {
        bad->item[i] = (struct cg_bad_block){.group = cg_get_u64(at),
                                             .chunk_id = cg_get_u64(at + 8),
                                             .file_id = cg_get_u64(at + 16),
                                             .block = cg_get_u32(at + 24)};
    }
    return 0;
}
