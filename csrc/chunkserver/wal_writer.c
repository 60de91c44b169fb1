// SPDX-License-Identifier: BSD-3-Clause
//
// The path of an append: into the open batch, to the disk at the end of the reactor's iteration,
// back to the caller in log order.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/wal_internal.h"

static void batch_done(struct cg_file_op *op);

// ---- Batches

static struct wal_batch *batch_create(struct cg_wal *wal) {
    struct wal_batch *batch = malloc(sizeof(*batch));
    if (batch == NULL) {
        return NULL;
    }
    memset(&batch->op, 0, sizeof(batch->op));
    batch->region = aligned_alloc(CG_WAL_BLOCK, WAL_REGION_MAX);
    if (batch->region == NULL) {
        free(batch);
        return NULL;
    }
    batch->wal = wal;
    batch->iov[0].iov_base = batch->region;
    batch->op.opcode = wal_segments_direct(&wal->segments) ? CG_FILE_WRITE : CG_FILE_WRITE_BUFFERED;
    batch->op.iov = batch->iov;
    batch->op.done = batch_done;
    cg_list_init(&batch->appends);
    cg_list_init(&batch->node);
    return batch;
}

static void batch_free(struct wal_batch *batch) {
    free(batch->region);
    free(batch);
}

static struct wal_batch *batch_take(struct cg_wal *wal) {
    struct cg_list *node = cg_list_pop_front(&wal->spare);
    struct wal_batch *batch;
    if (node != NULL) {
        wal->spare_count--;
        batch = CG_CONTAINER_OF(node, struct wal_batch, node);
    } else {
        batch = batch_create(wal);
        if (batch == NULL) {
            return NULL;
        }
    }
    batch->used = WAL_BATCH_HEADER_SIZE;
    batch->payload = 0;
    batch->record_count = 0;
    batch->iovcnt = 1;
    batch->complete = false;
    return batch;
}

static void batch_release(struct cg_wal *wal, struct wal_batch *batch) {
    if (wal->spare_count >= WAL_SPARE_MAX) {
        batch_free(batch);
        return;
    }
    // The front is the warmest in the cache.
    cg_list_push_front(&wal->spare, &batch->node);
    wal->spare_count++;
}

// The batch that still takes records is the last in the queue.
static struct wal_batch *open_batch(struct cg_wal *wal) {
    return cg_list_empty(&wal->queue) ? NULL
                                      : CG_CONTAINER_OF(wal->queue.prev, struct wal_batch, node);
}

static struct wal_batch *batch_push(struct cg_wal *wal) {
    struct wal_batch *batch = batch_take(wal);
    if (batch != NULL) {
        cg_list_push_back(&wal->queue, &batch->node);
        wal->open_bytes = wal_batch_bytes(batch);
        wal->queued_bytes += wal->open_bytes;
    }
    return batch;
}

// ---- Appending

static bool batch_takes(const struct cg_wal *wal, const struct wal_batch *batch,
                        const struct cg_wal_append *append, uint32_t encoded) {
    return batch->used + encoded <= WAL_REGION_MAX &&
           batch->iovcnt + append->payload_count <= WAL_BATCH_PIECES &&
           wal_region_size(batch->used + encoded) + batch->payload +
                   append->record.payload_length <=
               wal->batch_bytes_max;
}

static void batch_add(struct cg_wal *wal, struct wal_batch *batch, struct cg_wal_append *append,
                      uint32_t encoded) {
    wal_record_encode(&append->record, batch->region + batch->used);
    batch->used += encoded;
    for (int i = 0; i < append->payload_count; i++) {
        batch->iov[batch->iovcnt++] = append->payload[i];
    }
    batch->payload += append->record.payload_length;
    batch->record_count++;
    cg_list_push_back(&batch->appends, &append->node);
    uint64_t bytes = wal_batch_bytes(batch);
    wal->queued_bytes += bytes - wal->open_bytes;
    wal->open_bytes = bytes;
}

static void defer_flush(struct cg_wal *wal) {
    cg_reactor_defer(wal->reactor, &wal->flush);
}

static void refuse(struct cg_wal *wal, struct cg_wal_append *append, int status) {
    append->status = status;
    append->lsn = 0;
    cg_list_push_back(&wal->refused, &append->node);
    defer_flush(wal);
}

static bool append_legal(const struct cg_wal *wal, const struct cg_wal_append *append,
                         uint32_t encoded) {
    uint64_t total = 0;
    for (int i = 0; i < append->payload_count; i++) {
        total += append->payload[i].iov_len;
        if (append->payload[i].iov_len % CG_WAL_BLOCK != 0 ||
            (uintptr_t)append->payload[i].iov_base % CG_WAL_BLOCK != 0) {
            return false;
        }
    }
    return wal_record_legal(&append->record) && total == append->record.payload_length &&
           append->payload_count < WAL_BATCH_PIECES &&
           wal_region_size(WAL_BATCH_HEADER_SIZE + encoded) + total <= wal->batch_bytes_max;
}

void cg_wal_append(struct cg_wal *wal, struct cg_wal_append *append) {
    uint32_t encoded = wal_record_encoded_size(&append->record);
    if (!append_legal(wal, append, encoded)) {
        refuse(wal, append, -EINVAL);
        return;
    }
    if (wal->error != 0) {
        refuse(wal, append, wal->error);
        return;
    }
    struct wal_batch *batch = open_batch(wal);
    if (batch == NULL || !batch_takes(wal, batch, append, encoded)) {
        batch = batch_push(wal);
        if (batch == NULL) {
            refuse(wal, append, -ENOMEM);
            return;
        }
    }
    batch_add(wal, batch, append, encoded);
    if (wal->in_flight_count < wal->batches_in_flight && wal->opening == NULL) {
        defer_flush(wal);
    }
}

// ---- Failure

static void finish_appends(struct wal_batch *batch, int status) {
    struct cg_list done;
    cg_list_init(&done);
    cg_list_splice_back(&done, &batch->appends);
    uint64_t lsn = batch->lsn;
    batch_release(batch->wal, batch);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&done)) != NULL) {
        struct cg_wal_append *append = CG_CONTAINER_OF(node, struct cg_wal_append, node);
        append->status = status;
        append->lsn = lsn;
        append->done(append);
    }
}

static void set_error(struct cg_wal *wal, int error, const char *what) {
    if (wal->error == 0) {
        wal->error = error;
        cg_log(CG_LOG_ERROR, "wal: %s at log position %llu failed: %s; the disk is retired", what,
               (unsigned long long)wal->next_lsn, strerror(-error));
    }
}

// Everything that was not submitted fails, after what was: callers see log order in failure too.
static void fail_queue(struct cg_wal *wal) {
    if (wal->error == 0 || wal->in_flight_count != 0 || wal->opening != NULL) {
        return;
    }
    wal->retired = true;
    wal->queued_bytes = 0;
    wal->open_bytes = 0;
    struct cg_list failed;
    cg_list_init(&failed);
    cg_list_splice_back(&failed, &wal->queue);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&failed)) != NULL) {
        finish_appends(CG_CONTAINER_OF(node, struct wal_batch, node), wal->error);
    }
}

static void finish_refused(struct cg_wal *wal) {
    struct cg_list refused;
    cg_list_init(&refused);
    cg_list_splice_back(&refused, &wal->refused);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&refused)) != NULL) {
        struct cg_wal_append *append = CG_CONTAINER_OF(node, struct cg_wal_append, node);
        append->done(append);
    }
}

// ---- Switching segments

void wal_fill_header(const struct cg_wal *wal, uint64_t sequence,
                     struct wal_segment_header *header) {
    memcpy(header->uuid, wal->segments.uuid, WAL_UUID_SIZE);
    header->sequence = sequence;
    header->incarnation = wal->incarnation;
    header->start_lsn = wal->next_lsn;
    header->durable_lsn = wal->durable_lsn;
}

static void header_done(struct cg_file_op *op) {
    struct cg_wal *wal = CG_CONTAINER_OF(op, struct cg_wal, header_op);
    struct wal_segment *segment = wal->opening;
    wal->opening = NULL;
    wal_segments_push_live(&wal->segments, segment);
    if (op->result != CG_WAL_BLOCK) {
        set_error(wal, op->result < 0 ? (int)op->result : -EIO, "writing a segment's header");
    }
    wal_resume(wal);
}

// A batch is submitted to a segment only when the segment's header is durable: then a bad header in
// front of good batches is known to be corruption. Batches of the old segment may still be in
// flight; the header's durable_lsn tells.
static void switch_segment(struct cg_wal *wal) {
    struct wal_segments *set = &wal->segments;
    struct wal_segment *segment = wal_segment_take(set);
    wal_segments_grow(set, segment == NULL);
    if (segment == NULL) {
        return; // resumed by the preparation's end or by a recycling
    }
    wal_fill_header(wal, wal_segments_current(set)->header.sequence + 1, &segment->header);
    wal_segment_header_encode(&segment->header, wal->header_block);
    wal->opening = segment;
    wal->header_iov.iov_base = wal->header_block;
    wal->header_iov.iov_len = CG_WAL_BLOCK;
    wal->header_op.opcode = wal_segments_direct(set) ? CG_FILE_WRITE : CG_FILE_WRITE_BUFFERED;
    wal->header_op.fd = segment->handle;
    wal->header_op.iov = &wal->header_iov;
    wal->header_op.iovcnt = 1;
    wal->header_op.offset = 0;
    wal->header_op.done = header_done;
    wal->disk->ops->submit(wal->disk, &wal->header_op);
}

// ---- Submitting

static uint64_t write_offset(struct cg_wal *wal, const struct wal_segment *current) {
    return CG_WAL_BLOCK + (wal->next_lsn - current->header.start_lsn);
}

static void seal_header(struct cg_wal *wal, struct wal_batch *batch,
                        const struct wal_segment *current) {
    struct wal_batch_header header = {
        .sequence = current->header.sequence,
        .incarnation = wal->incarnation,
        .lsn = wal->next_lsn,
        .durable_lsn = wal->durable_lsn,
        .used = batch->used,
        .region = wal_region_size(batch->used),
        .payload = batch->payload,
        .record_count = batch->record_count,
    };
    wal_batch_seal(&header, wal->segments.uuid, batch->region);
    batch->lsn = wal->next_lsn;
    batch->iov[0].iov_len = header.region;
}

// Takes the first batch off the queue and hands it to the disk.
static void submit_batch(struct cg_wal *wal, struct wal_batch *batch,
                         const struct wal_segment *current) {
    uint32_t bytes = wal_batch_bytes(batch);
    cg_list_remove(&batch->node);
    wal->queued_bytes -= bytes;
    if (cg_list_empty(&wal->queue)) {
        wal->open_bytes = 0;
    }
    seal_header(wal, batch, current);
    batch->op.fd = current->handle;
    batch->op.iovcnt = batch->iovcnt;
    batch->op.offset = write_offset(wal, current);
    wal->next_lsn += bytes;
    wal->sealed = batch->record_count == 0;
    cg_list_push_back(&wal->in_flight, &batch->node);
    wal->in_flight_count++;
    wal->stats.batches++;
    wal->stats.records += batch->record_count;
    wal->stats.bytes += bytes;
    wal->disk->ops->submit(wal->disk, &batch->op);
}

static void flush(struct cg_deferred *deferred) {
    struct cg_wal *wal = CG_CONTAINER_OF(deferred, struct cg_wal, flush);
    while (wal->error == 0 && wal->opening == NULL && !cg_list_empty(&wal->queue) &&
           wal->in_flight_count < wal->batches_in_flight) {
        struct wal_batch *batch = CG_CONTAINER_OF(wal->queue.next, struct wal_batch, node);
        const struct wal_segment *current = wal_segments_current(&wal->segments);
        if (write_offset(wal, current) + wal_batch_bytes(batch) > current->size) {
            switch_segment(wal);
            break;
        }
        submit_batch(wal, batch, current);
    }
    fail_queue(wal);
    finish_refused(wal);
}

void wal_resume(struct cg_wal *wal) {
    if (!cg_list_empty(&wal->queue) || wal->error != 0) {
        defer_flush(wal);
    }
}

// ---- Completing

static void arm_seal(struct cg_wal *wal) {
    wal->last_done_ns = cg_reactor_now(wal->reactor);
    if (!wal->sealed && !cg_timer_armed(&wal->seal_timer)) {
        // Without memory for the timer there is no seal this time; the next batch tries again.
        (void)cg_timer_arm(wal->reactor, &wal->seal_timer, wal->last_done_ns + WAL_SEAL_DELAY_NS);
    }
}

// Rearmed rather than moved with every batch, so that a busy log pays nothing for it.
static void seal_fire(struct cg_timer *timer) {
    struct cg_wal *wal = CG_CONTAINER_OF(timer, struct cg_wal, seal_timer);
    uint64_t due = wal->last_done_ns + WAL_SEAL_DELAY_NS;
    if (wal->error != 0 || wal->sealed) {
        return;
    }
    if (wal->in_flight_count != 0 || !cg_list_empty(&wal->queue) ||
        cg_reactor_now(wal->reactor) < due) {
        arm_seal(wal);
        return;
    }
    if (batch_push(wal) != NULL) {
        defer_flush(wal);
    }
}

// Acknowledges from the front of the log on, as far as writes have completed.
static void complete_in_order(struct cg_wal *wal) {
    while (!cg_list_empty(&wal->in_flight)) {
        struct wal_batch *batch = CG_CONTAINER_OF(wal->in_flight.next, struct wal_batch, node);
        if (!batch->complete) {
            break;
        }
        cg_list_remove(&batch->node);
        wal->in_flight_count--;
        uint32_t bytes = wal_batch_bytes(batch);
        if (batch->op.result != (int64_t)bytes) {
            wal->retired = true;
        }
        if (!wal->retired) {
            wal->durable_lsn = batch->lsn + bytes;
        }
        finish_appends(batch, wal->retired ? wal->error : 0);
    }
}

static void batch_done(struct cg_file_op *op) {
    struct wal_batch *batch = CG_CONTAINER_OF(op, struct wal_batch, op);
    struct cg_wal *wal = batch->wal;
    batch->complete = true;
    if (op->result != (int64_t)wal_batch_bytes(batch)) {
        // A short write is a failure too: what the device did not take has no second chance here.
        set_error(wal, op->result < 0 ? (int)op->result : -EIO, "a write");
    }
    complete_in_order(wal);
    arm_seal(wal);
    wal_resume(wal);
}

// ---- Life cycle

static void prepared(void *context) {
    struct cg_wal *wal = context;
    wal_resume(wal);
    wal_segments_grow(&wal->segments, false);
}

int wal_writer_init(struct cg_wal *wal) {
    cg_list_init(&wal->queue);
    cg_list_init(&wal->in_flight);
    cg_list_init(&wal->spare);
    cg_list_init(&wal->refused);
    cg_list_init(&wal->flush.node);
    wal->flush.run = flush;
    wal->seal_timer.fire = seal_fire;
    wal->sealed = true;
    wal->segments.prepared = prepared;
    wal->segments.context = wal;
    wal->header_block = aligned_alloc(CG_WAL_BLOCK, CG_WAL_BLOCK);
    if (wal->header_block == NULL) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i <= wal->batches_in_flight; i++) {
        struct wal_batch *batch = batch_create(wal);
        if (batch == NULL) {
            return -ENOMEM;
        }
        batch_release(wal, batch);
    }
    return 0;
}

void wal_writer_destroy(struct cg_wal *wal) {
    cg_timer_disarm(&wal->seal_timer);
    cg_reactor_undefer(&wal->flush);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&wal->queue)) != NULL ||
           (node = cg_list_pop_front(&wal->spare)) != NULL) {
        batch_free(CG_CONTAINER_OF(node, struct wal_batch, node));
    }
    free(wal->header_block);
}

void wal_seal_blocking(struct cg_wal *wal) {
    const struct wal_segment *current = wal_segments_current(&wal->segments);
    if (wal->error != 0 || wal->sealed || current == NULL ||
        write_offset(wal, current) + CG_WAL_BLOCK > current->size) {
        return;
    }
    struct wal_batch *batch = batch_take(wal);
    if (batch == NULL) {
        return;
    }
    seal_header(wal, batch, current);
    int64_t n = wal->disk->ops->write(wal->disk, current->handle, batch->region, CG_WAL_BLOCK,
                                      write_offset(wal, current));
    if (n < 0) {
        cg_log(CG_LOG_WARNING, "wal: the closing seal could not be written: %s", strerror((int)-n));
    }
    batch_free(batch);
}
