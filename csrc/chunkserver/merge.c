// SPDX-License-Identifier: BSD-3-Clause
//
// The middle of a mutation, from the locked range into the log: fill up the edge blocks, compare,
// make the entry, propose it.
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/store_internal.h"

// What a record takes in the log besides its payload, at most: its share of a batch's header
// region.
#define RECORD_OVERHEAD 8192U

// With less room than this the disk is asked for its free space more often.
#define LOOK_OFTEN_BELOW (UINT64_C(1) << 30) // bytes of room
#define LOOK_AGAIN_NS    (5 * CG_NS_PER_MS)

// ---- Into the log

static void fill_entry(struct cg_op *op, enum cg_entry_type type, uint32_t first, uint32_t count) {
    const struct cg_mutation *request = &op->request;
    op->entry.type = type;
    op->entry.flags |= (request->has_epoch ? CG_ENTRY_HAS_EPOCH : 0U) |
                       (request->has_client ? CG_ENTRY_HAS_CLIENT : 0U);
    op->entry.chunk_id = request->chunk_id;
    op->entry.file_id = request->file_id;
    op->entry.epoch = request->epoch;
    op->entry.sn = request->sn;
    op->entry.client_id = request->client_id;
    op->entry.sequence = request->sequence;
    op->entry.settled_below = request->settled_below;
    op->entry.offset = first * CG_BLOCK_SIZE;
    op->entry.length = count * CG_BLOCK_SIZE;
}

static bool new_blocks(const struct cg_op *op) {
    if (op->request.kind != CG_MUTATE_WRITE && op->request.kind != CG_MUTATE_COMPARE_AND_WRITE &&
        !op->request.no_hole) {
        return false;
    }
    return !op->chunk->exists ||
           cg_blockmap_count(op->chunk->slot->allocated, op->first, op->count) < op->count;
}

// Whether the entry's new blocks will find room when it is applied, whatever was promised before
// it.
static bool space_for(struct cg_op *op) {
    struct cg_store *store = op->store;
    uint64_t needed = (uint64_t)op->count * CG_BLOCK_SIZE;
    uint64_t taken = store->options.reserve_bytes + store->claimed_bytes + needed;
    // Others take space too, the log's growth among them: near the end a second is a long time.
    if (cg_store_available(store) < taken + LOOK_OFTEN_BELOW &&
        cg_reactor_now(store->reactor) - store->looked_ns > LOOK_AGAIN_NS) {
        cg_store_look_at_space(store);
    }
    if (store->stalled_count > 0 || cg_store_available(store) < taken) {
        return false;
    }
    op->claimed = (uint32_t)needed;
    return true;
}

// The chunk's sequence number once all that this leader has logged is applied.
static uint64_t newest_sn(const struct cg_op *op) {
    const struct cg_chunk *chunk = op->chunk;
    return chunk->proposed_term == op->term && chunk->proposed_sn > chunk->sn ? chunk->proposed_sn
                                                                              : chunk->sn;
}

// SUCCESS, or why the entry cannot be logged now.
static cg_status admit(struct cg_op *op) {
    struct cg_store *store = op->store;
    if (store->disk_error != 0) {
        return STATUS(DISK_FAIL);
    }
    // What was merged or compared is as of the term in which the range was locked: another leader's
    // entries may have come in between.
    if (op->term != op->request.copyset->term_led) {
        return STATUS(REDIRECTED);
    }
    if (op->chunk != NULL && op->request.sn != 0 && op->request.sn < newest_sn(op)) {
        return STATUS(BACKWARD);
    }
    if (op->chunk != NULL && new_blocks(op) && !space_for(op)) {
        // Space that was given back a moment ago counts as soon as the holes are made.
        return store->freeing_count > 0 && store->stalled_count == 0 ? STATUS(OVERLOAD)
                                                                     : STATUS(NOSPACE);
    }
    op->logged = op->payload_length + RECORD_OVERHEAD;
    if (cg_wal_used(store->wal) + store->logging_bytes + op->logged > cg_wal_capacity(store->wal)) {
        op->logged = 0;
        op->claimed = 0;
        cg_store_checkpoint(store);
        return STATUS(OVERLOAD);
    }
    return STATUS(SUCCESS);
}

// The data's CRC, if that is the block's.
static const uint32_t *known_crc(const struct cg_op *op) {
    const struct cg_mutation *request = &op->request;
    bool is_block = op->payload_length == CG_BLOCK_SIZE && request->size == CG_BLOCK_SIZE &&
                    request->offset % CG_BLOCK_SIZE == 0 && request->kind == CG_MUTATE_WRITE;
    return request->has_crc && is_block ? &request->crc : NULL;
}

// Gives the entry to the copyset's log: 0, or as cg_copyset_log_propose.
static int log_entry(struct cg_op *op) {
    uint8_t meta[CG_ENTRY_META_SIZE];
    cg_entry_encode(&op->entry, meta);
    struct cg_buffer *buffer = op->request.kind == CG_MUTATE_ZERO ? op->scratch : op->buffer;
    struct cg_log_entry *entry = cg_log_entry_make(op->entry.type, 0, 0, meta, sizeof(meta), buffer,
                                                   op->payload, op->payload_length, known_crc(op));
    if (entry == NULL) {
        return -ENOMEM;
    }
    op->proposal.entry = entry;
    op->proposal.failed = cg_proposal_failed;
    int result = cg_copyset_log_propose(op->request.copyset->log, &op->proposal);
    if (result != 0) {
        cg_log_entry_unref(entry);
        return result;
    }
    op->logged_entry = cg_log_entry_ref(entry);
    op->index = op->proposal.index;
    op->stage = CG_OP_LOGGING;
    return 0;
}

static cg_status status_of(const struct cg_op *op, int error) {
    switch (error) {
    case -EPERM:
        return STATUS(REDIRECTED);
    case -EAGAIN:
        return cg_copyset_log_transferring(op->request.copyset->log) ? STATUS(REDIRECTED)
                                                                     : STATUS(OVERLOAD);
    case -EIO:
        return STATUS(DISK_FAIL);
    default:
        return STATUS(OVERLOAD);
    }
}

static void note_proposed(struct cg_op *op) {
    struct cg_store *store = op->store;
    store->logging_bytes += op->logged;
    store->claimed_bytes += op->claimed;
    if (op->entry.type == CG_ENTRY_DELETE ||
        (op->entry.type == CG_ENTRY_ZERO && (op->entry.flags & CG_ENTRY_KEEP) == 0)) {
        op->freeing = true;
        store->freeing_count++;
    }
    if (op->chunk != NULL && op->request.sn > newest_sn(op)) {
        op->chunk->proposed_sn = op->request.sn;
        op->chunk->proposed_term = op->term;
    }
}

// Logs the entry; op->payload is set if there is one.
static void propose(struct cg_op *op) {
    cg_status status = admit(op);
    if (status == STATUS(SUCCESS)) {
        int result = log_entry(op);
        if (result == 0) {
            note_proposed(op);
            return;
        }
        op->logged = 0;
        op->claimed = 0;
        status = status_of(op, result);
    }
    cg_op_end(op, status, 0);
}

static void set_payload(struct cg_op *op, uint8_t *data, uint32_t length) {
    op->payload = data;
    op->payload_length = length;
}

// ---- Edge blocks

// Bytes of the first block in front of the range, and of the last block behind it.
static uint32_t head_bytes(const struct cg_op *op) {
    return op->request.offset % CG_BLOCK_SIZE;
}

static uint32_t tail_bytes(const struct cg_op *op) {
    uint32_t end_in_block = (op->request.offset + op->request.size) % CG_BLOCK_SIZE;
    return end_in_block == 0 ? 0 : CG_BLOCK_SIZE - end_in_block;
}

static uint8_t *request_data(const struct cg_op *op) {
    return op->buffer->data + op->request.data_offset;
}

static void log_write(struct cg_op *op) {
    fill_entry(op, CG_ENTRY_WRITE, op->first, op->count);
    set_payload(op, request_data(op) - head_bytes(op), op->count * CG_BLOCK_SIZE);
    propose(op);
}

static bool block_is_hole(const struct cg_op *op, uint32_t block) {
    return !op->chunk->exists || !cg_blockmap_test(op->chunk->slot->allocated, block);
}

// The edge blocks of a ZERO are in scratch, the first at 0, the last (if another one) at one block.
static void log_zero_edges(struct cg_op *op) {
    uint8_t *scratch = op->scratch->data;
    uint32_t head = head_bytes(op);
    uint32_t tail = tail_bytes(op);
    bool one = op->count == 1;
    bool keep = op->request.no_hole;
    if (head != 0) {
        uint32_t length = one ? op->request.size : CG_BLOCK_SIZE - head;
        memset(scratch + head, 0, length);
    }
    if (tail != 0 && !(one && head != 0)) {
        memset(scratch + (one ? 0 : CG_BLOCK_SIZE), 0, CG_BLOCK_SIZE - tail);
    }
    // A hole is zeros already.
    bool want_head = head != 0 && (keep || !block_is_hole(op, op->first));
    bool want_tail =
        tail != 0 && !(one && head != 0) && (keep || !block_is_hole(op, op->first + op->count - 1));
    uint32_t first = op->first + (head != 0 ? 1 : 0);
    uint32_t last = op->first + op->count - (tail != 0 ? 1 : 0);
    uint32_t middle = last > first ? last - first : 0;
    uint8_t *tail_data = one ? scratch : scratch + CG_BLOCK_SIZE;
    if (middle == 0 && (want_head || want_tail)) {
        // No whole block inside: what is left is a write of the merged edges.
        uint32_t from = want_head ? op->first : op->first + op->count - 1;
        uint32_t count = (want_head ? 1U : 0U) + (want_tail ? 1U : 0U);
        fill_entry(op, CG_ENTRY_WRITE, from, count);
        set_payload(op, want_head ? scratch : tail_data, count * CG_BLOCK_SIZE);
    } else {
        op->entry.flags |= (keep ? CG_ENTRY_KEEP : 0U) | (want_head ? CG_ENTRY_HEAD : 0U) |
                           (want_tail ? CG_ENTRY_TAIL : 0U);
        fill_entry(op, CG_ENTRY_ZERO, middle > 0 ? first : op->first, middle);
        uint32_t blocks = (want_head ? 1U : 0U) + (want_tail ? 1U : 0U);
        if (blocks > 0) {
            set_payload(op, want_head ? scratch : tail_data, blocks * CG_BLOCK_SIZE);
        }
    }
    propose(op);
}

static void merge_next(struct cg_op *op);

static void merge_read_done(struct cg_block_read *read, cg_status status) {
    struct cg_op *op = CG_CONTAINER_OF(read, struct cg_op, read);
    if (status != STATUS(SUCCESS)) {
        if (!cg_op_await_mend(op, status, false)) {
            cg_op_end(op, status, 0);
        }
        return;
    }
    op->merge_step++;
    merge_next(op);
}

static void read_blocks(struct cg_op *op, uint32_t first, uint32_t count, uint8_t *into) {
    op->read.chunk = op->chunk;
    op->read.first = first;
    op->read.count = count;
    op->read.data = into;
    op->read.done = merge_read_done;
    cg_block_read_start(&op->read);
}

// Fills up a write's first and last block from `head_block` and `tail_block`.
static void merge_write(struct cg_op *op, const uint8_t *head_block, const uint8_t *tail_block) {
    uint32_t head = head_bytes(op);
    uint32_t tail = tail_bytes(op);
    uint8_t *data = request_data(op);
    if (head != 0) {
        memcpy(data - head, head_block, head);
    }
    if (tail != 0) {
        memcpy(data + op->request.size, tail_block + CG_BLOCK_SIZE - tail, tail);
    }
}

// ---- Answers without an entry

static void others_asked(struct cg_log_read *asked, int status) {
    struct cg_op *op = CG_CONTAINER_OF(asked, struct cg_op, asked);
    if (status == 0 && op->term == op->request.copyset->term_led) {
        cg_op_end(op, op->unlogged, op->mismatch);
    } else {
        cg_op_end(op, status == 0 ? STATUS(REDIRECTED) : status_of(op, status), 0);
    }
}

// What the chunk holds, or that it is not there, only the leader can say, as in a read: this
// replica may have been deposed without knowing.
static void end_unlogged(struct cg_op *op, cg_status status, uint32_t mismatch) {
    struct cg_copyset *copyset = op->request.copyset;
    if (op->term == copyset->term_led && cg_copyset_log_can_read(copyset->log)) {
        cg_op_end(op, status, mismatch);
        return;
    }
    op->unlogged = status;
    op->mismatch = mismatch;
    op->asked.done = others_asked;
    cg_copyset_log_read(copyset->log, &op->asked);
}

static void compare_and_log(struct cg_op *op) {
    const uint8_t *stored = op->scratch->data;
    const uint8_t *expected = request_data(op) - op->request.size;
    uint32_t head = head_bytes(op);
    if (memcmp(stored + head, expected, op->request.size) != 0) {
        uint32_t at = 0;
        while (stored[head + at] == expected[at]) {
            at++;
        }
        end_unlogged(op, STATUS(MISCOMPARE), at);
        return;
    }
    merge_write(op, stored, stored + (size_t)(op->count - 1) * CG_BLOCK_SIZE);
    log_write(op);
}

static void merged(struct cg_op *op) {
    const uint8_t *scratch = op->scratch->data;
    switch (op->request.kind) {
    case CG_MUTATE_WRITE:
        merge_write(op, scratch, op->count == 1 ? scratch : scratch + CG_BLOCK_SIZE);
        log_write(op);
        break;
    case CG_MUTATE_COMPARE_AND_WRITE:
        compare_and_log(op);
        break;
    default:
        log_zero_edges(op);
        break;
    }
}

// Step 0 reads the first block, step 1 the last one; a comparison reads all at step 0.
static void merge_next(struct cg_op *op) {
    if (op->merge_step == 0) {
        if (op->request.kind == CG_MUTATE_COMPARE_AND_WRITE) {
            op->merge_step = 1;
            read_blocks(op, op->first, op->count, op->scratch->data);
            return;
        }
        if (head_bytes(op) != 0 || (op->count == 1 && tail_bytes(op) != 0)) {
            read_blocks(op, op->first, 1, op->scratch->data);
            return;
        }
        op->merge_step = 1;
    }
    if (op->merge_step == 1) {
        if (op->count > 1 && tail_bytes(op) != 0) {
            read_blocks(op, op->first + op->count - 1, 1, op->scratch->data + CG_BLOCK_SIZE);
            return;
        }
    }
    merged(op);
}

static void start_merge(struct cg_op *op) {
    size_t length = 2 * (size_t)CG_BLOCK_SIZE;
    if (op->request.kind == CG_MUTATE_COMPARE_AND_WRITE) {
        length = (size_t)op->count * CG_BLOCK_SIZE;
    }
    op->scratch = cg_buffer_alloc(op->store->pool, length);
    if (op->scratch == NULL) {
        cg_op_end(op, STATUS(OVERLOAD), 0);
        return;
    }
    op->stage = CG_OP_MERGING;
    merge_next(op);
}

static void start_trim(struct cg_op *op) {
    uint32_t first = op->first + (head_bytes(op) != 0 ? 1 : 0);
    uint32_t last = op->first + op->count - (tail_bytes(op) != 0 ? 1 : 0);
    fill_entry(op, CG_ENTRY_ZERO, last > first ? first : op->first,
               last > first ? last - first : 0);
    propose(op);
}

void cg_op_start(struct cg_op *op) {
    bool aligned = head_bytes(op) == 0 && tail_bytes(op) == 0;
    switch (op->request.kind) {
    case CG_MUTATE_WRITE:
        if (aligned) {
            log_write(op);
        } else {
            start_merge(op);
        }
        break;
    case CG_MUTATE_COMPARE_AND_WRITE:
        start_merge(op);
        break;
    case CG_MUTATE_ZERO:
        if (aligned) {
            op->entry.flags |= op->request.no_hole ? CG_ENTRY_KEEP : 0U;
            fill_entry(op, CG_ENTRY_ZERO, op->first, op->count);
            propose(op);
        } else {
            start_merge(op);
        }
        break;
    case CG_MUTATE_TRIM:
        start_trim(op);
        break;
    case CG_MUTATE_DELETE:
        if (!op->chunk->exists && !op->request.has_client) {
            end_unlogged(op, STATUS(SUCCESS), 0);
            break;
        }
        fill_entry(op, CG_ENTRY_DELETE, 0, 0);
        propose(op);
        break;
    case CG_MUTATE_EPOCH:
        fill_entry(op, CG_ENTRY_EPOCH, 0, 0);
        cg_op_raise_begin(op);
        propose(op);
        break;
    }
}
