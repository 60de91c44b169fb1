// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/wal_recovery.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "chunkserver/wal_reader.h"

struct recovery {
    struct wal_segments *set;
    const struct cg_wal_replay *replay;
    struct wal_reader reader;
    struct wal_segment **segments; // every file with a used header, by sequence
    size_t count, capacity;
    struct cg_list doubtful; // files whose header does not check out
    uint64_t *slots;         // found in the folder
    size_t slot_count, slot_capacity;
    uint64_t batches, records;
    char *error;
    size_t error_size;
};

static int fail(struct recovery *r, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct recovery *r, int status, const char *format, ...) {
    if (r->error != NULL && r->error_size != 0) {
        va_list args;
        va_start(args, format);
        vsnprintf(r->error, r->error_size, format, args);
        va_end(args);
    }
    return status;
}

static int grow(void *array, size_t *capacity, size_t count, size_t item) {
    if (count < *capacity) {
        return 0;
    }
    size_t wanted = *capacity != 0 ? *capacity * 2 : 32;
    void **slot = array;
    void *bigger = realloc(*slot, wanted * item);
    if (bigger == NULL) {
        return -ENOMEM;
    }
    *slot = bigger;
    *capacity = wanted;
    return 0;
}

static int read_failed(struct recovery *r, const struct wal_segment *segment, int status) {
    return fail(r, status, "cannot read %s/segment-%06u: %s", WAL_FOLDER, segment->slot,
                strerror(-status));
}

// ---- Loading the folder

static int note_slot(void *context, const char *name) {
    struct recovery *r = context;
    unsigned slot;
    int end = 0;
    if (sscanf(name, "segment-%06u%n", &slot, &end) != 1 || name[end] != '\0') {
        cg_log(CG_LOG_WARNING, "wal: leaving %s/%s alone, it is not a segment", WAL_FOLDER, name);
        return 0;
    }
    int status = grow(&r->slots, &r->slot_capacity, r->slot_count, sizeof(*r->slots));
    if (status == 0) {
        r->slots[r->slot_count++] = slot;
    }
    return status;
}

static int check_uuid(struct recovery *r, const struct wal_segment *segment) {
    if (r->count == 0) {
        memcpy(r->set->uuid, segment->header.uuid, WAL_UUID_SIZE);
        return 0;
    }
    if (memcmp(r->set->uuid, segment->header.uuid, WAL_UUID_SIZE) != 0) {
        return fail(r, -EBADMSG, "%s/segment-%06u belongs to another log", WAL_FOLDER,
                    segment->slot);
    }
    return 0;
}

// Sorts one opened file by what its header says. Takes ownership of `segment`.
static int classify(struct recovery *r, struct wal_segment *segment, int header_status) {
    struct wal_segments *set = r->set;
    if (header_status == -EPROTONOSUPPORT) {
        int status = fail(r, -EBADMSG, "%s/segment-%06u was written by a newer version", WAL_FOLDER,
                          segment->slot);
        cg_list_push_back(&r->doubtful, &segment->node);
        return status;
    }
    if (header_status < 0) {
        segment->unprepared = header_status == -ENODATA;
        cg_list_push_back(&r->doubtful, &segment->node);
        return 0;
    }
    if (segment->header.sequence == 0) {
        wal_segment_release(set, segment);
        return 0;
    }
    int status = check_uuid(r, segment);
    if (status == 0) {
        status = grow(&r->segments, &r->capacity, r->count, sizeof(struct wal_segment *));
    }
    if (status < 0) {
        cg_list_push_back(&r->doubtful, &segment->node);
        return status;
    }
    r->segments[r->count++] = segment;
    return 0;
}

static int load_one(struct recovery *r, uint32_t slot) {
    struct wal_segment *segment;
    int status = wal_segment_open(r->set, slot, &segment);
    if (status < 0) {
        return fail(r, status, "cannot open %s/segment-%06u: %s", WAL_FOLDER, slot,
                    strerror(-status));
    }
    const uint8_t *block;
    status = wal_reader_get(&r->reader, segment, 0, CG_WAL_BLOCK, &block);
    if (status < 0) {
        cg_list_push_back(&r->doubtful, &segment->node);
        return read_failed(r, segment, status);
    }
    int header = block == NULL ? -ENODATA : wal_segment_header_decode(block, &segment->header);
    wal_reader_forget(&r->reader); // the memory of `segment` may be reused for another
    return classify(r, segment, header);
}

static int by_sequence(const void *a, const void *b) {
    uint64_t x = (*(struct wal_segment *const *)a)->header.sequence;
    uint64_t y = (*(struct wal_segment *const *)b)->header.sequence;
    return x < y ? -1 : x > y;
}

static int load(struct recovery *r) {
    struct cg_disk *disk = r->set->disk;
    int status = disk->ops->list(disk, WAL_FOLDER, note_slot, r);
    if (status < 0) {
        return fail(r, status, "cannot list %s: %s", WAL_FOLDER, strerror(-status));
    }
    for (size_t i = 0; i < r->slot_count && status == 0; i++) {
        status = load_one(r, (uint32_t)r->slots[i]);
    }
    if (status == 0 && r->count != 0) {
        qsort(r->segments, r->count, sizeof(struct wal_segment *), by_sequence);
    }
    return status;
}

// ---- Which segments hold what

// Where a segment's content ends at the latest: any later header makes void what is above its
// start.
static void set_ends(struct recovery *r) {
    uint64_t end = UINT64_MAX;
    for (size_t i = r->count; i-- > 0;) {
        r->segments[i]->end_lsn = end;
        if (r->segments[i]->header.start_lsn < end) {
            end = r->segments[i]->header.start_lsn;
        }
    }
}

// Finds the first segment that holds something at or above `from`, and checks that none is missing
// from there on.
static int find_first(struct recovery *r, uint64_t from, size_t *out) {
    size_t first = 0;
    while (r->segments[first]->end_lsn <= from) {
        first++; // ends: the last one's end is UINT64_MAX
    }
    if (r->segments[first]->header.start_lsn > from) {
        return fail(r, -EBADMSG,
                    "the log begins at %llu in %s/segment-%06u, but is needed from %llu",
                    (unsigned long long)r->segments[first]->header.start_lsn, WAL_FOLDER,
                    r->segments[first]->slot, (unsigned long long)from);
    }
    for (size_t i = first + 1; i < r->count; i++) {
        uint64_t sequence = r->segments[i - 1]->header.sequence + 1;
        if (r->segments[i]->header.sequence != sequence) {
            return fail(r, -EBADMSG,
                        "the segment with sequence %llu is missing: %s/segment-%06u has %llu",
                        (unsigned long long)sequence, WAL_FOLDER, r->segments[i]->slot,
                        (unsigned long long)r->segments[i]->header.sequence);
        }
    }
    *out = first;
    return 0;
}

// A file whose header is bad: either its reuse was cut short, then it holds an older segment's
// batches or none; or the header of a segment in use has rotted, then its first batch is there,
// because none is submitted before the header is durable.
static int check_doubtful(struct recovery *r, struct wal_segment *segment) {
    uint64_t newest = r->count != 0 ? r->segments[r->count - 1]->header.sequence : 0;
    const uint8_t *region;
    int status = wal_reader_get(&r->reader, segment, CG_WAL_BLOCK, CG_WAL_BLOCK, &region);
    if (status < 0) {
        return read_failed(r, segment, status);
    }
    struct wal_batch_header header;
    if (region == NULL || !wal_batch_peek(region, &header) || header.sequence <= newest) {
        return 0;
    }
    bool valid = true; // no header left to know the log's uuid by: take it at its word
    if (r->count != 0) {
        status = wal_reader_get(&r->reader, segment, CG_WAL_BLOCK, header.region, &region);
        if (status < 0) {
            return read_failed(r, segment, status);
        }
        valid = region != NULL && wal_batch_region_valid(&header, r->set->uuid, region);
    }
    if (!valid) {
        return 0;
    }
    return fail(r, -EBADMSG, "the header of %s/segment-%06u (offset 0) is corrupt", WAL_FOLDER,
                segment->slot);
}

static int check_all_doubtful(struct recovery *r) {
    int status = 0;
    CG_LIST_FOREACH (node, &r->doubtful) {
        status = check_doubtful(r, CG_CONTAINER_OF(node, struct wal_segment, node));
        if (status < 0) {
            break;
        }
    }
    return status;
}

// Only once the whole log has been found good: until then the file may be evidence.
static void release_doubtful(struct recovery *r) {
    wal_reader_forget(&r->reader);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&r->doubtful)) != NULL) {
        struct wal_segment *segment = CG_CONTAINER_OF(node, struct wal_segment, node);
        if (segment->unprepared) {
            wal_segment_remove(r->set, segment);
        } else {
            wal_segment_release(r->set, segment);
        }
    }
}

// ---- Replay

static int report(struct recovery *r, const struct wal_batch_view *view) {
    uint32_t position = WAL_BATCH_HEADER_SIZE;
    uint32_t offset = 0;
    for (uint32_t i = 0; i < view->header.record_count; i++) {
        struct cg_wal_record record;
        int status = wal_record_decode(view->region, view->header.used, &position, &record);
        assert(status == 0); // wal_batch_verify has walked it
        status = r->replay->record(r->replay->context, view->header.lsn, &record,
                                   view->payload + offset);
        if (status < 0) {
            return fail(r, status, "replay of index %llu of group %llx stopped: %s",
                        (unsigned long long)record.index, (unsigned long long)record.group,
                        strerror(-status));
        }
        offset += record.payload_length;
        r->records++;
    }
    r->batches++;
    return 0;
}

// Replays one segment from `*lsn` to its end or the first bad batch. `*lsn` is moved on.
static int replay_segment(struct recovery *r, const struct wal_segment *segment, uint64_t *lsn) {
    while (*lsn < segment->end_lsn) {
        struct wal_batch_view view;
        int status = wal_batch_at(&r->reader, segment, *lsn, &view);
        if (status < 0) {
            return read_failed(r, segment, status);
        }
        if (status == 0) {
            return 0;
        }
        if (wal_batch_total(&view.header) > segment->end_lsn - *lsn) {
            return fail(r, -EBADMSG, "%s/segment-%06u: the batch at offset %llu crosses the cut",
                        WAL_FOLDER, segment->slot,
                        (unsigned long long)wal_offset_of(segment, *lsn));
        }
        status = report(r, &view);
        if (status < 0) {
            return status;
        }
        *lsn += wal_batch_total(&view.header);
    }
    return 0;
}

// The highest durable_lsn that valid batch headers of `segment` from `lsn` on state.
static int evidence_in(struct recovery *r, const struct wal_segment *segment, uint64_t lsn,
                       uint64_t *durable) {
    uint64_t end = segment->header.start_lsn + segment->size - CG_WAL_BLOCK;
    if (end > segment->end_lsn) {
        end = segment->end_lsn;
    }
    for (; lsn < end; lsn += CG_WAL_BLOCK) {
        struct wal_batch_view view;
        int status = wal_region_at(&r->reader, segment, lsn, &view);
        if (status < 0) {
            return read_failed(r, segment, status);
        }
        if (status > 0 && view.header.durable_lsn > *durable) {
            *durable = view.header.durable_lsn;
        }
    }
    return 0;
}

// The batch at `bad` in segment `at` does not check out: a torn tail, unless something later says
// that it was durable.
static int judge(struct recovery *r, size_t at, uint64_t bad) {
    uint64_t durable = 0;
    int status = evidence_in(r, r->segments[at], bad + CG_WAL_BLOCK, &durable);
    for (size_t i = at + 1; i < r->count && status == 0; i++) {
        const struct wal_segment *later = r->segments[i];
        if (later->header.durable_lsn > durable) {
            durable = later->header.durable_lsn;
        }
        status = evidence_in(r, later, later->header.start_lsn, &durable);
    }
    if (status < 0 || durable <= bad) {
        return status;
    }
    return fail(
        r, -EBADMSG,
        "%s/segment-%06u is corrupt at offset %llu (log position %llu): the log was durable "
        "up to %llu",
        WAL_FOLDER, r->segments[at]->slot, (unsigned long long)wal_offset_of(r->segments[at], bad),
        (unsigned long long)bad, (unsigned long long)durable);
}

// What a killed process wrote may be readable and yet not be on the medium; from here on it counts.
static int sync_segments(struct recovery *r, size_t first) {
    struct cg_disk *disk = r->set->disk;
    for (size_t i = first; i < r->count; i++) {
        int status = disk->ops->sync(disk, r->segments[i]->handle);
        if (status < 0) {
            return fail(r, status, "cannot sync %s/segment-%06u: %s", WAL_FOLDER,
                        r->segments[i]->slot, strerror(-status));
        }
    }
    return 0;
}

static int replay_all(struct recovery *r, size_t first, uint64_t *end) {
    uint64_t lsn = r->replay->from_lsn;
    for (size_t i = first; i < r->count; i++) {
        const struct wal_segment *segment = r->segments[i];
        if (segment->header.start_lsn >= segment->end_lsn) {
            continue; // all of it was cut by an earlier recovery
        }
        int status = replay_segment(r, segment, &lsn);
        if (status < 0) {
            return status;
        }
        if (lsn != segment->end_lsn) {
            status = judge(r, i, lsn);
            if (status < 0) {
                return status;
            }
            break;
        }
    }
    *end = lsn;
    return sync_segments(r, first);
}

// ---- Putting the result together

// A last segment without any batch, valid or stale, goes to the front of the free list, and its
// sequence is used again: a server that restarts in a loop must not fill the disk with empty
// segments.
static int choose_reuse(struct recovery *r, uint64_t end, struct wal_recovered *out) {
    struct wal_segment *last = r->segments[r->count - 1];
    if (last->header.start_lsn < end || last->size < r->set->smallest_bytes) {
        return 0;
    }
    // A whole stale batch behind a header that is being rewritten would look as if the header had
    // rotted, should the rewrite be torn.
    struct wal_batch_view view;
    int status = wal_region_at(&r->reader, last, last->header.start_lsn, &view);
    if (status != 0) {
        return status < 0 ? read_failed(r, last, status) : 0;
    }
    out->next_sequence = last->header.sequence;
    r->count--;
    cg_list_push_front(&r->set->free, &last->node);
    r->set->free_count++;
    return 0;
}

static void hand_over(struct recovery *r, size_t first, uint64_t end) {
    for (size_t i = 0; i < first; i++) {
        wal_segment_release(r->set, r->segments[i]);
    }
    for (size_t i = first; i < r->count; i++) {
        struct wal_segment *segment = r->segments[i];
        if (segment->end_lsn > end) {
            segment->end_lsn = end;
        }
        if (i + 1 < r->count) {
            r->set->sealed_bytes += segment->size;
        }
        cg_list_push_back(&r->set->live, &segment->node);
    }
    r->count = 0;
}

static int recover_used(struct recovery *r, struct wal_recovered *out) {
    const struct wal_segment *last = r->segments[r->count - 1];
    out->next_sequence = last->header.sequence + 1;
    for (size_t i = 0; i < r->count; i++) {
        if (r->segments[i]->header.incarnation >= out->incarnation) {
            out->incarnation = r->segments[i]->header.incarnation + 1;
        }
    }
    set_ends(r);
    size_t first = 0;
    int status = find_first(r, r->replay->from_lsn, &first);
    if (status == 0) {
        status = replay_all(r, first, &out->end_lsn);
    }
    if (status == 0) {
        status = choose_reuse(r, out->end_lsn, out);
    }
    if (status == 0) {
        hand_over(r, first < r->count ? first : r->count, out->end_lsn);
        cg_log(CG_LOG_INFO, "wal: replayed %llu records in %llu batches from %llu to %llu",
               (unsigned long long)r->records, (unsigned long long)r->batches,
               (unsigned long long)r->replay->from_lsn, (unsigned long long)out->end_lsn);
    }
    return status;
}

static int recover_empty(struct recovery *r, struct wal_recovered *out) {
    if (r->replay->from_lsn != 0) {
        return fail(r, -EBADMSG, "the log is empty, but is needed from %llu",
                    (unsigned long long)r->replay->from_lsn);
    }
    out->next_sequence = 1;
    if (getrandom(r->set->uuid, WAL_UUID_SIZE, 0) != WAL_UUID_SIZE) {
        return fail(r, -EIO, "getrandom: %s", strerror(errno));
    }
    return 0;
}

// Whatever was not handed over still has an open file.
static void recovery_free(struct recovery *r) {
    for (size_t i = 0; i < r->count; i++) {
        cg_list_push_back(&r->set->live, &r->segments[i]->node);
    }
    cg_list_splice_back(&r->set->live, &r->doubtful);
    free(r->segments);
    free(r->slots);
    wal_reader_destroy(&r->reader);
}

int wal_recover(struct wal_segments *set, const struct cg_wal_replay *replay,
                struct wal_recovered *out, char *error, size_t error_size) {
    struct recovery r = {.set = set, .replay = replay, .error = error, .error_size = error_size};
    cg_list_init(&r.doubtful);
    memset(out, 0, sizeof(*out));
    out->incarnation = 1;
    int status = wal_reader_init(&r.reader, set);
    status = status == 0 ? load(&r) : fail(&r, status, "out of memory");
    if (status == 0) {
        status = check_all_doubtful(&r);
    }
    if (status == 0) {
        status = r.count != 0 ? recover_used(&r, out) : recover_empty(&r, out);
    }
    if (status == 0) {
        release_doubtful(&r);
    }
    recovery_free(&r);
    return status;
}
