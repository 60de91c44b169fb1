// SPDX-License-Identifier: BSD-3-Clause
//
// One chunk copied from another replica: windows of blocks in parallel, each checked and written
// on a pool thread; then the metadata, the sync, and the new file takes the old one's place. The
// metadata says the index that the chunk had before the first block was read: what came later is
// applied again.
#include <errno.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "chunkserver/catchup_internal.h"

#define NO_MEMORY_NS (20 * CG_NS_PER_MS)

static void advance(struct cg_chunk_pull *pull);
static void ask(struct cg_copy_piece *piece);

int cg_chunk_pull_init(struct cg_chunk_pull *pull, struct cg_catchup *catchup) {
    memset(pull, 0, sizeof(*pull));
    pull->catchup = catchup;
    for (unsigned i = 0; i < CG_COPY_PIECES; i++) {
        pull->piece[i].pull = pull;
    }
    return cg_copy_file_init(&pull->file, catchup->store->disk);
}

void cg_chunk_pull_free(struct cg_chunk_pull *pull) {
    cg_copy_file_free(&pull->file);
}

// ---- The end

static void ended(struct cg_file_op *op) {
    struct cg_chunk_pull *pull = CG_CONTAINER_OF(op, struct cg_chunk_pull, op);
    pull->active = false;
    struct cg_catchup *catchup = pull->catchup;
    pull->done(pull, pull->status);
    cg_catchup_ended(catchup);
}

static void abandon_call(struct cg_file_op *op) {
    struct cg_chunk_pull *pull = CG_CONTAINER_OF(op, struct cg_chunk_pull, op);
    cg_copy_file_abandon(&pull->file);
    op->result = 0;
}

static void submit(struct cg_chunk_pull *pull, void (*call)(struct cg_file_op *op),
                   void (*done)(struct cg_file_op *op)) {
    struct cg_disk *disk = pull->catchup->store->disk;
    pull->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = call, .done = done};
    disk->ops->submit(disk, &pull->op);
}

static void fail(struct cg_chunk_pull *pull, int status) {
    if (pull->status == 0) {
        pull->status = status;
    }
    pull->stopping = true;
}

// An error of our own disk. Full is no reason to retire it.
static void fail_disk(struct cg_chunk_pull *pull, int status, const char *what) {
    struct cg_store *store = pull->catchup->store;
    bool passing = status == -ENOSPC || status == -EDQUOT || status == -EMFILE ||
                   status == -ENFILE || status == -ENOMEM;
    if (!passing) {
        cg_store_retire(store, -status, what);
    }
    fail(pull, status == -EDQUOT ? -ENOSPC : status);
}

// ---- Finishing

static void finish_call(struct cg_file_op *op) {
    struct cg_chunk_pull *pull = CG_CONTAINER_OF(op, struct cg_chunk_pull, op);
    struct cg_chunk_header header = {
        .sequence = 1,
        .group = pull->copyset->group,
        .chunk_id = pull->info.id,
        .file_id = pull->info.file_id,
        .sn = pull->info.sn,
        .applied_index = pull->info.applied_index,
        .chunk_size = pull->catchup->store->format.chunk_size,
    };
    op->result = cg_copy_file_finish(&pull->file, &header, pull->allocated, pull->crc);
}

static void finished(struct cg_file_op *op) {
    struct cg_chunk_pull *pull = CG_CONTAINER_OF(op, struct cg_chunk_pull, op);
    if (op->result != 0) {
        fail_disk(pull, (int)op->result, "writing a copied chunk");
        advance(pull);
        return;
    }
    pull->file.temporary[0] = '\0';
    pull->status = 0; // even if it was to be cancelled: it is in its place, the caller goes on
    pull->catchup->stats.received_chunks++;
    uint32_t blocks = pull->catchup->store->format.chunk_size / CG_BLOCK_SIZE;
    for (uint32_t block = 0; pull->damaged > 0 && block < blocks; block++) {
        if (cg_blockmap_test(pull->bad, block)) {
            cg_damage_found(pull->copyset, pull->info.id, pull->info.file_id, block,
                            "it was bad where it was copied from");
        }
    }
    ended(op);
}

// ---- Pieces

static void check_and_write_call(struct cg_file_op *op) {
    struct cg_copy_piece *piece = CG_CONTAINER_OF(op, struct cg_copy_piece, op);
    uint8_t *data = piece->buffer->data;
    uint32_t at = 0; // of the blocks received, which stand one after the other
    op->result = 0;
    for (uint32_t i = 0; i < piece->count && op->result == 0;) {
        if (!(piece->got.mask >> i & 1U)) {
            i++;
            continue;
        }
        uint32_t run = 0;
        while (i + run < piece->count && (piece->got.mask >> (i + run) & 1U)) {
            const uint8_t *block = data + (size_t)(at + run) * CG_BLOCK_SIZE;
            if (!piece->accept_damaged &&
                cg_crc32c(0, block, CG_BLOCK_SIZE) != piece->got.crc[i + run]) {
                op->result = -EBADMSG;
                return;
            }
            run++;
        }
        op->result = cg_copy_file_write(&piece->pull->file, piece->first + i, run,
                                        data + (size_t)at * CG_BLOCK_SIZE);
        at += run;
        i += run;
    }
}

static void piece_over(struct cg_copy_piece *piece) {
    cg_buffer_unref(piece->buffer);
    piece->buffer = NULL;
    if (piece->pull->stopping || piece->first == piece->end) {
        piece->busy = false;
        piece->pull->busy--;
        advance(piece->pull);
    } else {
        ask(piece);
    }
}

static void written(struct cg_file_op *op) {
    struct cg_copy_piece *piece = CG_CONTAINER_OF(op, struct cg_copy_piece, op);
    struct cg_chunk_pull *pull = piece->pull;
    if (op->result == -EBADMSG) {
        fail(pull, -EBADMSG); // damaged on its way
    } else if (op->result != 0) {
        fail_disk(pull, (int)op->result, "writing a copied chunk");
    } else {
        for (uint32_t i = 0; i < piece->count; i++) {
            if (piece->got.mask >> i & 1U) {
                cg_blockmap_set(pull->allocated, piece->first + i, 1);
                pull->crc[piece->first + i] = piece->got.crc[i];
            }
        }
        pull->catchup->stats.received_bytes +=
            (uint64_t)__builtin_popcountll(piece->got.mask) * CG_BLOCK_SIZE;
        piece->first += piece->count;
        piece->count =
            piece->end - piece->first < piece->count ? piece->end - piece->first : piece->count;
        piece->damaged = 0;
        piece->accept_damaged = false;
    }
    piece_over(piece);
}

static void write_piece(struct cg_copy_piece *piece) {
    struct cg_disk *disk = piece->pull->catchup->store->disk;
    piece->op =
        (struct cg_file_op){.opcode = CG_FILE_CALL, .call = check_and_write_call, .done = written};
    disk->ops->submit(disk, &piece->op);
}

static void wait_and_ask(struct cg_copy_piece *piece, uint64_t wait_ns) {
    struct cg_reactor *reactor = piece->pull->catchup->store->reactor;
    if (cg_timer_arm(reactor, &piece->timer, cg_reactor_now(reactor) + wait_ns) != 0) {
        fail(piece->pull, -ENOMEM);
        piece_over(piece);
    }
}

// The source's copy of one block is bad. It mends it if anybody has it: some time is given to that,
// unless it has just started: what power loss tore is written again by the log, here as there.
// Then the block is bad here, too: with the checksum that it should have, so that nobody takes it
// for good.
static void take_damaged(struct cg_copy_piece *piece) {
    struct cg_chunk_pull *pull = piece->pull;
    if (!piece->call.reply.torn && ++piece->damaged <= CG_COPY_DAMAGED_MAX) {
        cg_buffer_unref(piece->buffer);
        piece->buffer = NULL;
        wait_and_ask(piece, CG_COPY_RETRY_NS);
        return;
    }
    uint8_t *block = piece->buffer->data;
    memset(block, 0, CG_BLOCK_SIZE);
    if (piece->got.crc[0] == pull->catchup->store->zero_crc) {
        block[0] = 1;
    }
    piece->accept_damaged = true;
    cg_blockmap_set(pull->bad, piece->first, 1);
    pull->damaged++;
    write_piece(piece);
}

static void piece_answered(struct cg_copy_call *call) {
    struct cg_copy_piece *piece = CG_CONTAINER_OF(call, struct cg_copy_piece, call);
    struct cg_chunk_pull *pull = piece->pull;
    uint32_t head = cg_copy_head_size(piece->count);
    int status = call->status;
    bool damaged = false;
    if (status == 0) {
        switch (call->reply.status) {
        case CG_COPY(OK):
            break;
        case CG_COPY(DAMAGED):
            damaged = true;
            break;
        case CG_COPY(NO_CHUNK):
            status = -ENOENT;
            break;
        default:
            status = -EAGAIN;
            break;
        }
    }
    if (status == 0 && !pull->stopping && damaged && piece->count > 1) {
        piece->count = 1; // one after the other: the others are good
        piece_over(piece);
        return;
    }
    if (status == 0 &&
        (call->received < head ||
         cg_copy_head_decode(piece->head, piece->count, &piece->got) != 0 ||
         call->received !=
             head +
                 (damaged ? 0 : (uint32_t)__builtin_popcountll(piece->got.mask) * CG_BLOCK_SIZE))) {
        status = -EBADMSG;
    }
    if (status != 0 || pull->stopping) {
        fail(pull, status);
        piece_over(piece);
    } else if (damaged) {
        take_damaged(piece);
    } else {
        write_piece(piece);
    }
}

// Asks for the piece, once its time has come.
static void ask(struct cg_copy_piece *piece) {
    struct cg_chunk_pull *pull = piece->pull;
    struct cg_catchup *catchup = pull->catchup;
    uint64_t now = cg_reactor_now(catchup->store->reactor);
    uint64_t wait = cg_copy_pause(&catchup->pace, pull->urgency, now);
    if (wait > 0) {
        wait_and_ask(piece, wait);
        return;
    }
    size_t length = (size_t)piece->count * CG_BLOCK_SIZE;
    piece->buffer = cg_buffer_alloc(catchup->store->pool, length);
    if (piece->buffer == NULL) {
        wait_and_ask(piece, NO_MEMORY_NS);
        return;
    }
    cg_copy_charge(&catchup->pace, length, pull->urgency, cg_catchup_busy(catchup), now);
    piece->call.request = (copygate_CopyRequest){
        .has_copying = pull->copying != 0,
        .copying = pull->copying,
        .has_chunk_id = true,
        .chunk_id = pull->info.id,
        .has_first = true,
        .first = piece->first,
        .has_count = true,
        .count = piece->count,
        .has_index = true,
        .index = pull->min_index,
        .has_urgency = true,
        .urgency = pull->urgency,
    };
    piece->call.iov[0] = (struct iovec){piece->head, cg_copy_head_size(piece->count)};
    piece->call.iov[1] = (struct iovec){piece->buffer->data, length};
    piece->call.iovcnt = 2;
    piece->call.done = piece_answered;
    cg_copy_ask(catchup, pull->copyset, pull->source, CG_COPY_BLOCKS, &piece->call);
}

static void timer_fired(struct cg_timer *timer) {
    struct cg_copy_piece *piece = CG_CONTAINER_OF(timer, struct cg_copy_piece, timer);
    if (piece->pull->stopping) {
        piece_over(piece);
    } else {
        ask(piece);
    }
}

// Takes the next windows, or ends.
static void advance(struct cg_chunk_pull *pull) {
    uint32_t blocks = pull->catchup->store->format.chunk_size / CG_BLOCK_SIZE;
    for (unsigned i = 0; i < CG_COPY_PIECES && !pull->stopping; i++) {
        struct cg_copy_piece *piece = &pull->piece[i];
        if (piece->busy) {
            continue;
        }
        uint32_t first = cg_copy_next_window(pull->info.allocated, pull->next, blocks);
        if (first == blocks) {
            pull->next = blocks;
            break;
        }
        pull->next = first + CG_COPY_BLOCKS_MAX < blocks ? first + CG_COPY_BLOCKS_MAX : blocks;
        piece->busy = true;
        piece->first = first;
        piece->end = pull->next;
        piece->count = pull->next - first;
        piece->damaged = 0;
        piece->accept_damaged = false;
        piece->timer.fire = timer_fired;
        pull->busy++;
        ask(piece);
    }
    if (pull->busy > 0) {
        return;
    }
    if (pull->stopping) {
        submit(pull, abandon_call, ended);
    } else {
        submit(pull, finish_call, finished);
    }
}

// ---- The beginning

static void begin_call(struct cg_file_op *op) {
    struct cg_chunk_pull *pull = CG_CONTAINER_OF(op, struct cg_chunk_pull, op);
    char folder[CG_CHUNK_PATH_MAX];
    cg_copyset_folder(pull->copyset, folder);
    op->result = cg_copy_file_begin(&pull->file, folder, pull->info.id,
                                    pull->catchup->store->format.chunk_size);
}

static void begun(struct cg_file_op *op) {
    struct cg_chunk_pull *pull = CG_CONTAINER_OF(op, struct cg_chunk_pull, op);
    if (op->result < 0) {
        fail_disk(pull, (int)op->result, "making a chunk");
    }
    advance(pull);
}

// What the file may take besides what is kept back.
static bool has_space(const struct cg_chunk_pull *pull) {
    struct cg_store *store = pull->catchup->store;
    uint32_t blocks = store->format.chunk_size / CG_BLOCK_SIZE;
    uint64_t needed = (uint64_t)cg_blockmap_count(pull->info.allocated, 0, blocks) * CG_BLOCK_SIZE;
    cg_store_look_at_space(store);
    return cg_store_available(store) >=
           store->options.reserve_bytes + store->claimed_bytes + needed;
}

void cg_chunk_pull_start(struct cg_chunk_pull *pull) {
    pull->active = true;
    pull->stopping = false;
    pull->status = 0;
    pull->next = 0;
    pull->damaged = 0;
    memset(pull->allocated, 0, sizeof(pull->allocated));
    memset(pull->bad, 0, sizeof(pull->bad));
    memset(pull->crc, 0, sizeof(pull->crc));
    if (!has_space(pull)) {
        fail(pull, -ENOSPC);
        submit(pull, abandon_call, ended);
        return;
    }
    submit(pull, begin_call, begun);
}

void cg_chunk_pull_cancel(struct cg_chunk_pull *pull) {
    if (!pull->active) {
        return;
    }
    fail(pull, -ECANCELED);
    for (unsigned i = 0; i < CG_COPY_PIECES; i++) {
        struct cg_copy_piece *piece = &pull->piece[i];
        if (piece->busy && cg_timer_armed(&piece->timer)) {
            cg_timer_disarm(&piece->timer);
            piece_over(piece);
        } else if (piece->busy) {
            cg_copy_cancel(&piece->call);
        }
    }
}
