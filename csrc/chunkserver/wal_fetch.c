// SPDX-License-Identifier: BSD-3-Clause
//
// Reading batches back from a log in use: for entries that are to be sent or applied and are not in
// memory any more. Two steps and more: the header region, then the payloads of the group's records,
// one read for as many as lie side by side. The segment is pinned meanwhile, so that neither its
// file nor its handle goes to something else under the read.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/wal_internal.h"

// Most regions are shorter; a longer one is read in whole when its header has told its length.
#define REGION_FIRST_READ (8U << 10)

// Records that are read at once.
#define RUN_MAX 64

// Memory of one fetch that is being read for, kept for the next.
struct wal_reading {
    struct cg_list node; // of fetching or readings
    struct cg_wal *wal;
    struct cg_wal_fetch *fetch;
    struct wal_segment *segment;
    struct cg_file_op op;
    struct wal_batch_header header;
    uint8_t *region;   // WAL_REGION_MAX bytes
    uint32_t read;     // bytes of the region that were asked for
    uint32_t index;    // records of the batch looked at
    uint32_t position; // of the next one in the region
    uint32_t offset;   // of its payload, from the end of the region on
    // The records of the group being read, and where.
    int count;
    int pieces;
    uint32_t run_offset;
    uint32_t run_bytes;
    struct cg_wal_record records[RUN_MAX];
    struct cg_buffer *buffers[RUN_MAX];
    struct iovec iov[RUN_MAX];
};

static void read_run(struct wal_reading *reading);

// ---- Ends

static void defer(struct cg_wal *wal) {
    cg_reactor_defer(wal->reactor, &wal->fetch);
}

static void drop_run(struct wal_reading *reading) {
    for (int i = 0; i < reading->count; i++) {
        cg_buffer_unref(reading->buffers[i]);
    }
    reading->count = 0;
}

static void finish(struct wal_reading *reading, int status) {
    struct cg_wal *wal = reading->wal;
    struct cg_wal_fetch *fetch = reading->fetch;
    drop_run(reading);
    if (status == -EBADMSG) {
        cg_log(CG_LOG_ERROR, "wal: the batch at log position %llu (%s/segment-%06u) is corrupt",
               (unsigned long long)fetch->lsn, WAL_FOLDER, reading->segment->slot);
    }
    cg_list_remove(&reading->node);
    cg_list_push_front(&wal->readings, &reading->node);
    reading->segment->readers--;
    if (reading->segment->readers == 0 && fetch->lsn < wal->segments.needed_lsn) {
        cg_wal_recycle(wal, wal->segments.needed_lsn); // may have waited for this read
    }
    if (!cg_list_empty(&wal->fetches)) {
        defer(wal);
    }
    fetch->done(fetch, status);
}

static void submit(struct wal_reading *reading, uint64_t offset, int iovcnt,
                   void (*done)(struct cg_file_op *op)) {
    struct cg_disk *disk = reading->wal->disk;
    reading->op.opcode = CG_FILE_READ;
    reading->op.fd = reading->segment->handle;
    reading->op.iov = reading->iov;
    reading->op.iovcnt = iovcnt;
    reading->op.offset =
        CG_WAL_BLOCK + (reading->fetch->lsn - reading->segment->header.start_lsn) + offset;
    reading->op.done = done;
    disk->ops->submit(disk, &reading->op);
}

// 0, or what became of a read of `wanted` bytes. Where a durable batch should be, the file does not
// end.
static int outcome(const struct cg_file_op *op, uint32_t wanted) {
    if (op->result < 0) {
        return (int)op->result;
    }
    return op->result < (int64_t)wanted ? -EBADMSG : 0;
}

// ---- The payloads

// Reports the records of a run whose payload has come, and goes on behind it.
static void report_run(struct wal_reading *reading) {
    struct cg_wal_fetch *fetch = reading->fetch;
    for (int i = 0; i < reading->count; i++) {
        struct cg_buffer *buffer = reading->buffers[i];
        if (buffer != NULL && wal_payload_verify(&reading->records[i], buffer->data) < 0) {
            finish(reading, -EBADMSG);
            return;
        }
        fetch->record(fetch, &reading->records[i], buffer, buffer != NULL ? buffer->data : NULL);
    }
    drop_run(reading);
    read_run(reading);
}

static void payload_read(struct cg_file_op *op) {
    struct wal_reading *reading = CG_CONTAINER_OF(op, struct wal_reading, op);
    int status = outcome(op, reading->run_bytes);
    if (status < 0) {
        finish(reading, status);
        return;
    }
    report_run(reading);
}

// Adds a record of the group to the run. Returns 0 or -ENOMEM.
static int run_add(struct wal_reading *reading, const struct cg_wal_record *record) {
    struct cg_buffer *buffer = NULL;
    if (record->payload_length != 0) {
        buffer = cg_buffer_alloc(reading->fetch->pool, record->payload_length);
        if (buffer == NULL) {
            return -ENOMEM;
        }
        if (reading->pieces == 0) {
            reading->run_offset = reading->header.region + reading->offset;
        }
        reading->iov[reading->pieces].iov_base = buffer->data;
        reading->iov[reading->pieces++].iov_len = record->payload_length;
        reading->run_bytes += record->payload_length;
    }
    reading->records[reading->count] = *record;
    reading->buffers[reading->count++] = buffer;
    return 0;
}

// Gathers the next records of the group whose payloads are one piece of the file. Returns 0 or
// -errno; a batch without more of them leaves the run empty.
static int gather(struct wal_reading *reading) {
    reading->pieces = 0;
    reading->run_bytes = 0;
    while (reading->index < reading->header.record_count && reading->count < RUN_MAX) {
        struct cg_wal_record record;
        uint32_t next = reading->position;
        if (wal_record_decode(reading->region, reading->header.used, &next, &record) < 0 ||
            record.payload_length > reading->header.payload - reading->offset) {
            return -EBADMSG;
        }
        if (record.group == reading->fetch->group) {
            int status = run_add(reading, &record);
            if (status < 0) {
                return status;
            }
        } else if (reading->pieces != 0 && record.payload_length != 0) {
            break;
        }
        reading->index++;
        reading->position = next;
        reading->offset += record.payload_length;
    }
    return 0;
}

static void read_run(struct wal_reading *reading) {
    int status = gather(reading);
    if (status < 0 || reading->count == 0) {
        finish(reading, status);
    } else if (reading->pieces == 0) {
        report_run(reading);
    } else {
        submit(reading, reading->run_offset, reading->pieces, payload_read);
    }
}

// ---- The header region

static void region_read(struct cg_file_op *op);

static void read_region(struct wal_reading *reading, uint32_t length) {
    reading->read = length;
    reading->iov[0].iov_base = reading->region;
    reading->iov[0].iov_len = length;
    submit(reading, 0, 1, region_read);
}

static void region_read(struct cg_file_op *op) {
    struct wal_reading *reading = CG_CONTAINER_OF(op, struct wal_reading, op);
    const struct wal_segment *segment = reading->segment;
    struct wal_batch_header *header = &reading->header;
    int status = outcome(op, CG_WAL_BLOCK);
    if (status < 0) {
        finish(reading, status);
        return;
    }
    if (!wal_batch_peek(reading->region, header) || header->sequence != segment->header.sequence ||
        header->incarnation != segment->header.incarnation || header->lsn != reading->fetch->lsn) {
        finish(reading, -EBADMSG);
        return;
    }
    if (op->result < (int64_t)header->region) {
        if (reading->read >= header->region) {
            finish(reading, -EBADMSG); // the file ends
        } else {
            read_region(reading, header->region);
        }
        return;
    }
    if (!wal_batch_region_valid(header, reading->wal->segments.uuid, reading->region)) {
        finish(reading, -EBADMSG);
        return;
    }
    reading->index = 0;
    reading->position = WAL_BATCH_HEADER_SIZE;
    reading->offset = 0;
    read_run(reading);
}

// ---- Beginning

static struct wal_reading *reading_create(struct cg_wal *wal) {
    struct wal_reading *reading = calloc(1, sizeof(*reading));
    if (reading == NULL) {
        return NULL;
    }
    reading->region = aligned_alloc(CG_WAL_BLOCK, WAL_REGION_MAX);
    if (reading->region == NULL) {
        free(reading);
        return NULL;
    }
    reading->wal = wal;
    cg_list_init(&reading->node);
    wal->reading_count++;
    return reading;
}

static struct wal_reading *reading_take(struct cg_wal *wal) {
    struct cg_list *node = cg_list_pop_front(&wal->readings);
    return node != NULL ? CG_CONTAINER_OF(node, struct wal_reading, node) : reading_create(wal);
}

static void begin(struct cg_wal *wal, struct cg_wal_fetch *fetch) {
    if (fetch->lsn % CG_WAL_BLOCK != 0 || fetch->lsn >= wal->durable_lsn) {
        fetch->done(fetch, -EINVAL);
        return;
    }
    struct wal_segment *segment = wal_segments_find(&wal->segments, fetch->lsn);
    if (segment == NULL) {
        fetch->done(fetch, -ENOENT);
        return;
    }
    struct wal_reading *reading = reading_take(wal);
    if (reading == NULL) {
        fetch->done(fetch, -ENOMEM);
        return;
    }
    reading->fetch = fetch;
    reading->segment = segment;
    segment->readers++;
    cg_list_push_back(&wal->fetching, &reading->node);
    read_region(reading, REGION_FIRST_READ);
}

static void begin_waiting(struct cg_deferred *deferred) {
    struct cg_wal *wal = CG_CONTAINER_OF(deferred, struct cg_wal, fetch);
    struct cg_list waiting; // what callbacks add has its turn in the next iteration
    cg_list_init(&waiting);
    cg_list_splice_back(&waiting, &wal->fetches);
    while (!cg_list_empty(&waiting) &&
           (!cg_list_empty(&wal->readings) || wal->reading_count < CG_WAL_FETCHES)) {
        struct cg_list *node = cg_list_pop_front(&waiting);
        begin(wal, CG_CONTAINER_OF(node, struct cg_wal_fetch, node));
    }
    cg_list_splice_back(&waiting, &wal->fetches);
    cg_list_splice_back(&wal->fetches, &waiting);
}

void cg_wal_fetch(struct cg_wal *wal, struct cg_buffer_pool *pool, struct cg_wal_fetch *fetch) {
    assert(fetch->record != NULL && fetch->done != NULL);
    fetch->pool = pool;
    cg_list_init(&fetch->node);
    cg_list_push_back(&wal->fetches, &fetch->node);
    defer(wal);
}

// ---- Life cycle

void wal_fetch_init(struct cg_wal *wal) {
    cg_list_init(&wal->fetches);
    cg_list_init(&wal->fetching);
    cg_list_init(&wal->readings);
    cg_list_init(&wal->fetch.node);
    wal->fetch.run = begin_waiting;
}

void wal_fetch_destroy(struct cg_wal *wal) {
    cg_reactor_undefer(&wal->fetch);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&wal->readings)) != NULL) {
        struct wal_reading *reading = CG_CONTAINER_OF(node, struct wal_reading, node);
        drop_run(reading); // of a simulated process that died
        free(reading->region);
        free(reading);
    }
}
