// SPDX-License-Identifier: BSD-3-Clause
//
// The chunks in memory: metadata, locks, descriptors. A fixed number of them; the ones used longest
// ago leave when others are needed. A chunk that is dirty stays: its metadata may be written only
// by a checkpoint, which keeps the other slot intact until it has synced.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "chunkserver/store_internal.h"

static size_t slots_length(const struct cg_store *store) {
    return (size_t)store->options.chunks_max * sizeof(struct cg_local_slot);
}

static int make_slots(struct cg_store *store) {
    if (store->options.share_folder != NULL) {
        int result = cg_local_share_create(store->options.share_folder, store->options.chunks_max,
                                           CG_CHUNK_DATA_OFFSET, &store->share);
        if (result == 0) {
            store->slots = cg_local_share_slot(store->share, 0);
            return 0;
        }
        store->share = NULL;
        cg_log(CG_LOG_WARNING, "no local reads: cannot make the map for them: %s",
               strerror(-result));
    }
    // Untouched slots take no memory.
    void *map = mmap(NULL, slots_length(store), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        return -errno;
    }
    store->slots = map;
    return 0;
}

int cg_chunk_cache_create(struct cg_store *store) {
    cg_list_init(&store->chunk_lru);
    cg_list_init(&store->free_chunks);
    cg_list_init(&store->dirty);
    cg_list_init(&store->opened);
    for (unsigned i = 0; i < CG_CHUNK_BUCKETS; i++) {
        cg_list_init(&store->chunk_bucket[i]);
    }
    store->chunks = calloc(store->options.chunks_max, sizeof(*store->chunks));
    if (store->chunks == NULL) {
        return -ENOMEM;
    }
    return make_slots(store);
}

void cg_chunk_cache_destroy(struct cg_store *store) {
    for (uint32_t i = 0; i < store->chunks_used; i++) {
        cg_chunk_close(&store->chunks[i]);
    }
    if (store->share != NULL) {
        cg_local_share_destroy(store->share);
    } else if (store->slots != NULL) {
        munmap(store->slots, slots_length(store));
    }
    free(store->chunks);
}

void cg_chunk_path(const struct cg_copyset *copyset, uint64_t id, char out[CG_CHUNK_PATH_MAX]) {
    snprintf(out, CG_CHUNK_PATH_MAX, "chunks/%" PRIu32 "-%" PRIu32 "/chunk_%" PRIu64, copyset->pool,
             copyset->id, id);
}

static struct cg_list *bucket_of(struct cg_store *store, uint64_t group, uint64_t id) {
    uint64_t hash = (id ^ (group * UINT64_C(0x9e3779b97f4a7c15))) * UINT64_C(0xff51afd7ed558ccd);
    return &store->chunk_bucket[(hash >> 40) % CG_CHUNK_BUCKETS];
}

struct cg_chunk *cg_chunk_find(const struct cg_copyset *copyset, uint64_t id) {
    const struct cg_list *bucket = bucket_of(copyset->store, copyset->group, id);
    CG_LIST_FOREACH (node, bucket) {
        struct cg_chunk *chunk = CG_CONTAINER_OF(node, struct cg_chunk, bucket);
        if (chunk->id == id && chunk->copyset == copyset) {
            return chunk;
        }
    }
    return NULL;
}

// ---- Descriptors

void cg_chunk_file_unref(struct cg_store *store, struct cg_chunk_file *file) {
    if (--file->refs == 0) {
        store->disk->ops->close(store->disk, file->handle);
        free(file);
    }
}

struct cg_chunk_file *cg_chunk_file_ref(struct cg_chunk *chunk) {
    chunk->file->refs++;
    return chunk->file;
}

struct cg_chunk_file *cg_chunk_detach(struct cg_chunk *chunk) {
    struct cg_chunk_file *file = chunk->file;
    if (file != NULL) {
        cg_list_remove(&chunk->opened);
        chunk->copyset->store->opened_count--;
        chunk->file = NULL;
    }
    return file;
}

void cg_chunk_close(struct cg_chunk *chunk) {
    struct cg_chunk_file *file = cg_chunk_detach(chunk);
    if (file != NULL) {
        cg_chunk_file_unref(chunk->copyset->store, file);
    }
}

int cg_chunk_open(struct cg_chunk *chunk, bool create) {
    struct cg_store *store = chunk->copyset->store;
    if (chunk->file != NULL) {
        return 0;
    }
    struct cg_chunk_file *file = malloc(sizeof(*file));
    if (file == NULL) {
        return -ENOMEM;
    }
    char path[CG_CHUNK_PATH_MAX];
    cg_chunk_path(chunk->copyset, chunk->id, path);
    int handle = store->disk->ops->open(store->disk, path, O_RDWR | (create ? O_CREAT : 0));
    if (handle < 0) {
        free(file);
        return handle;
    }
    *file = (struct cg_chunk_file){.handle = handle, .refs = 1};
    chunk->file = file;
    cg_list_push_front(&store->opened, &chunk->opened);
    if (++store->opened_count > store->options.descriptors_max) {
        cg_chunk_close(CG_CONTAINER_OF(store->opened.prev, struct cg_chunk, opened));
    }
    return 0;
}

// ---- Coming and going

static void slot_assign(struct cg_chunk *chunk, uint64_t id) {
    struct cg_local_slot *slot = chunk->slot;
    cg_local_slot_begin(slot, &chunk->slot_pending);
    atomic_store_explicit(&slot->chunk_id, id, memory_order_relaxed);
    atomic_store_explicit(&slot->group, chunk->copyset->group, memory_order_relaxed);
    atomic_store_explicit(&slot->file_id, chunk->file_id, memory_order_relaxed);
}

void cg_chunk_created(struct cg_chunk *chunk) {
    slot_assign(chunk, chunk->id);
    memset(chunk->slot->allocated, 0, sizeof(chunk->slot->allocated));
    chunk->exists = true;
    chunk->sequence = 0;
    chunk->newest = 1;
    chunk->unsure = false;
    chunk->copyset->folder_dirty = true;
    cg_local_slot_end(chunk->slot, &chunk->slot_pending);
}

void cg_chunk_deleted(struct cg_chunk *chunk) {
    slot_assign(chunk, 0);
    chunk->exists = false;
    chunk->generation++;
    chunk->sn = 0;
    chunk->proposed_sn = 0;
    chunk->unsynced = 0;
    memset(chunk->unsynced_blocks, 0, sizeof(chunk->unsynced_blocks));
    memset(chunk->syncing_blocks, 0, sizeof(chunk->syncing_blocks));
    cg_damage_chunk_gone(chunk->copyset, chunk->id);
    chunk->copyset->folder_dirty = true;
    cg_chunk_close(chunk);
    cg_chunk_mark_clean(chunk);
    cg_local_slot_end(chunk->slot, &chunk->slot_pending);
}

void cg_chunk_mark_clean(struct cg_chunk *chunk) {
    if (cg_list_linked(&chunk->dirty)) {
        cg_list_remove(&chunk->dirty);
        chunk->copyset->store->dirty_count--;
    }
}

void cg_chunk_mark_dirty(struct cg_chunk *chunk) {
    if (!cg_list_linked(&chunk->dirty)) {
        cg_list_push_back(&chunk->copyset->store->dirty, &chunk->dirty);
        chunk->copyset->store->dirty_count++;
    }
}

static void forget(struct cg_chunk *chunk) {
    struct cg_store *store = chunk->copyset->store;
    if (chunk->exists) {
        slot_assign(chunk, 0);
        cg_local_slot_end(chunk->slot, &chunk->slot_pending);
    }
    cg_chunk_close(chunk);
    cg_list_remove(&chunk->bucket);
    cg_list_remove(&chunk->lru);
    cg_list_remove(&chunk->unloadable); // whoever waited for it may have given up
    chunk->state = CG_CHUNK_FREE;
    chunk->exists = false;
    cg_list_push_front(&store->free_chunks, &chunk->lru);
}

bool cg_chunks_forget(struct cg_copyset *copyset) {
    struct cg_store *store = copyset->store;
    for (uint32_t i = 0; i < store->chunks_used; i++) {
        const struct cg_chunk *chunk = &store->chunks[i];
        if (chunk->state != CG_CHUNK_FREE && chunk->copyset == copyset &&
            (chunk->refs > 0 || chunk->flushing)) {
            return false;
        }
    }
    for (uint32_t i = 0; i < store->chunks_used; i++) {
        struct cg_chunk *chunk = &store->chunks[i];
        if (chunk->state != CG_CHUNK_FREE && chunk->copyset == copyset) {
            cg_chunk_mark_clean(chunk);
            forget(chunk);
        }
    }
    cg_deliver_unblock(store);
    return true;
}

static bool evict_one(struct cg_store *store) {
    for (struct cg_list *node = store->chunk_lru.prev; node != &store->chunk_lru;
         node = node->prev) {
        struct cg_chunk *chunk = CG_CONTAINER_OF(node, struct cg_chunk, lru);
        if (chunk->refs == 0 && !chunk->flushing && !cg_list_linked(&chunk->dirty)) {
            forget(chunk);
            return true;
        }
    }
    return false;
}

static struct cg_chunk *take_chunk(struct cg_store *store) {
    struct cg_list *node = cg_list_pop_front(&store->free_chunks);
    if (node != NULL) {
        return CG_CONTAINER_OF(node, struct cg_chunk, lru);
    }
    if (store->chunks_used < store->options.chunks_max) {
        struct cg_chunk *chunk = &store->chunks[store->chunks_used];
        chunk->slot_index = store->chunks_used++;
        chunk->slot = &store->slots[chunk->slot_index];
        cg_list_init(&chunk->lru);
        cg_list_init(&chunk->bucket);
        cg_list_init(&chunk->dirty);
        cg_list_init(&chunk->opened);
        cg_list_init(&chunk->inflight);
        cg_list_init(&chunk->waiting);
        cg_list_init(&chunk->waiting_reads);
        cg_list_init(&chunk->unloadable);
        return chunk;
    }
    if (!evict_one(store)) {
        return NULL;
    }
    return CG_CONTAINER_OF(cg_list_pop_front(&store->free_chunks), struct cg_chunk, lru);
}

// ---- Loading

static void loaded(struct cg_chunk *chunk, cg_status status) {
    chunk->state = status == STATUS(SUCCESS) ? CG_CHUNK_READY : CG_CHUNK_BROKEN;
    chunk->load_status = status;
    if (status != STATUS(SUCCESS)) {
        cg_ops_fail_waiting(chunk, status);
        cg_reads_fail(chunk, status);
        if (chunk->decided > 0) {
            cg_deliver_unloadable(chunk);
        }
    } else {
        cg_ops_pump(chunk);
        cg_reads_pump(chunk);
    }
}

static int restore_length(struct cg_chunk *chunk) {
    struct cg_store *store = chunk->copyset->store;
    int handle = chunk->load_file != NULL ? chunk->load_file->handle : chunk->file->handle;
    uint64_t whole = CG_CHUNK_DATA_OFFSET + (uint64_t)store->format.chunk_size;
    int64_t length = store->disk->ops->size(store->disk, handle);
    if (length < 0) {
        return (int)length;
    }
    if ((uint64_t)length >= whole) {
        return 0;
    }
    int result;
    do {
        result = store->disk->ops->truncate(store->disk, handle, whole);
    } while (result == -ENOSPC && cg_store_make_room(store));
    return result;
}

static cg_status adopt_metadata(struct cg_chunk *chunk, const uint8_t *data, int64_t length) {
    struct cg_store *store = chunk->copyset->store;
    if (length < 0) {
        cg_store_retire(store, (int)-length, "reading a chunk's metadata");
        return STATUS(DISK_FAIL);
    }
    struct cg_chunk_header header = {0};
    int result = -EBADMSG;
    if (length == CG_CHUNK_SLOTS_SIZE) {
        result = cg_chunk_slots_choose(data, chunk->recovering, &chunk->newest, &header);
    } else if (chunk->recovering) {
        // Power was lost before the file's length was synced: nothing in it counts yet.
        result = -ENODATA;
        chunk->newest = 1;
    }
    if (result == 0 && (header.chunk_id != chunk->id || header.group != chunk->copyset->group ||
                        header.chunk_size != store->format.chunk_size)) {
        result = -EBADMSG;
    }
    if (chunk->recovering && (result == 0 || result == -ENODATA)) {
        // The file may be shorter than it was: power was lost before its length was synced.
        int status = restore_length(chunk);
        if (status != 0) {
            cg_store_retire(store, -status, "setting a chunk's length");
            return STATUS(DISK_FAIL);
        }
    } else if (result != 0) {
        result = -EBADMSG;
    }
    if (result == -EBADMSG) {
        store->crc_errors++;
        if (length == CG_CHUNK_SLOTS_SIZE) {
            cg_damage_slots_found(chunk, data);
        } else {
            cg_damage_found(chunk->copyset, chunk->id, 0, CG_BAD_SLOT(0), "the file is too short");
        }
        return STATUS(CRC_FAIL);
    }
    chunk->exists = true;
    // What a checkpoint wrote that was cut short is in the log still, and an entry of it comes by
    // here.
    chunk->unsure = result == 0 && chunk->recovering;
    slot_assign(chunk, chunk->id);
    if (result == 0) {
        cg_chunk_slot_blocks(data + (size_t)chunk->newest * CG_CHUNK_SLOT_STRIDE,
                             chunk->slot->allocated, chunk->slot->crc);
    } else {
        memset(chunk->slot->allocated, 0, sizeof(chunk->slot->allocated));
    }
    chunk->sequence = header.sequence;
    chunk->sn = header.sn;
    chunk->file_id = header.file_id;
    chunk->applied_index = header.applied_index;
    atomic_store_explicit(&chunk->slot->file_id, chunk->file_id, memory_order_relaxed);
    cg_local_slot_end(chunk->slot, &chunk->slot_pending);
    return STATUS(SUCCESS);
}

static void load_done(struct cg_file_op *op) {
    struct cg_chunk *chunk = CG_CONTAINER_OF(op, struct cg_chunk, load);
    struct cg_store *store = chunk->copyset->store;
    store->file_ops--;
    cg_status status = adopt_metadata(chunk, chunk->load_buffer->data, op->result);
    cg_buffer_unref(chunk->load_buffer);
    chunk->load_buffer = NULL;
    cg_chunk_file_unref(store, chunk->load_file);
    chunk->load_file = NULL;
    loaded(chunk, status);
    cg_chunk_put(chunk);
}

// Reads the metadata of a file that is there; it goes on in load_done unless the page cache has it.
static void load(struct cg_chunk *chunk) {
    struct cg_store *store = chunk->copyset->store;
    chunk->load_buffer = cg_buffer_alloc(store->pool, CG_CHUNK_SLOTS_SIZE);
    if (chunk->load_buffer == NULL) {
        chunk->state = CG_CHUNK_BROKEN;
        chunk->load_status = STATUS(OVERLOAD);
        return;
    }
    chunk->load_iov = (struct iovec){chunk->load_buffer->data, CG_CHUNK_SLOTS_SIZE};
    int64_t length =
        store->disk->ops->read_cached(store->disk, chunk->file->handle, &chunk->load_iov, 1, 0);
    if (length == CG_CHUNK_SLOTS_SIZE) {
        chunk->load_status = adopt_metadata(chunk, chunk->load_buffer->data, length);
        chunk->state = chunk->load_status == STATUS(SUCCESS) ? CG_CHUNK_READY : CG_CHUNK_BROKEN;
        cg_buffer_unref(chunk->load_buffer);
        chunk->load_buffer = NULL;
        return;
    }
    chunk->refs++;
    chunk->load_file = cg_chunk_file_ref(chunk);
    chunk->load = (struct cg_file_op){
        .opcode = CG_FILE_READ,
        .fd = chunk->file->handle,
        .iov = &chunk->load_iov,
        .iovcnt = 1,
        .done = load_done,
    };
    store->file_ops++;
    store->disk->ops->submit(store->disk, &chunk->load);
}

static void start_loading(struct cg_chunk *chunk) {
    if (chunk->copyset->store->disk_error != 0) {
        chunk->state = CG_CHUNK_BROKEN;
        chunk->load_status = STATUS(DISK_FAIL);
        return;
    }
    int result = cg_chunk_open(chunk, false);
    if (result == 0) {
        load(chunk);
    } else if (result == -ENOENT) {
        chunk->state = CG_CHUNK_READY;
    } else if (result == -EMFILE || result == -ENFILE || result == -ENOMEM) {
        chunk->state = CG_CHUNK_BROKEN;
        chunk->load_status = STATUS(OVERLOAD);
    } else {
        cg_store_retire(chunk->copyset->store, -result, "opening a chunk");
        chunk->state = CG_CHUNK_BROKEN;
        chunk->load_status = STATUS(DISK_FAIL);
    }
}

void cg_chunk_reload(struct cg_chunk *chunk) {
    chunk->refs++;
    chunk->state = CG_CHUNK_LOADING;
    start_loading(chunk);
    if (chunk->state != CG_CHUNK_LOADING) {
        loaded(chunk, chunk->state == CG_CHUNK_READY ? STATUS(SUCCESS) : chunk->load_status);
    }
    cg_chunk_put(chunk);
}

static void reset(struct cg_chunk *chunk, struct cg_copyset *copyset, uint64_t id,
                  bool recovering) {
    chunk->copyset = copyset;
    chunk->id = id;
    chunk->recovering = recovering;
    chunk->state = CG_CHUNK_LOADING;
    chunk->load_status = STATUS(SUCCESS);
    chunk->exists = false;
    chunk->refs = 0;
    chunk->changes = 0;
    chunk->applying_count = 0;
    chunk->decided = 0;
    chunk->sn = 0;
    chunk->proposed_sn = 0;
    chunk->proposed_term = 0;
    chunk->file_id = 0;
    chunk->applied_index = 0;
    chunk->sequence = 0;
    chunk->newest = 1;
    chunk->unsure = false;
    chunk->unsynced = 0;
    memset(chunk->busy, 0, sizeof(chunk->busy));
    memset(chunk->applying, 0, sizeof(chunk->applying));
    memset(chunk->unsynced_blocks, 0, sizeof(chunk->unsynced_blocks));
    memset(chunk->syncing_blocks, 0, sizeof(chunk->syncing_blocks));
}

struct cg_chunk *cg_chunk_get(struct cg_copyset *copyset, uint64_t id, bool recovering) {
    struct cg_store *store = copyset->store;
    struct cg_chunk *chunk = cg_chunk_find(copyset, id);
    if (chunk == NULL) {
        chunk = take_chunk(store);
        if (chunk == NULL) {
            cg_store_checkpoint(store);
            return NULL;
        }
        reset(chunk, copyset, id, recovering);
        cg_list_push_front(bucket_of(store, copyset->group, id), &chunk->bucket);
        cg_list_push_front(&store->chunk_lru, &chunk->lru);
        chunk->refs++;
        start_loading(chunk);
        return chunk;
    }
    if (store->chunk_lru.next != &chunk->lru) {
        cg_list_remove(&chunk->lru);
        cg_list_push_front(&store->chunk_lru, &chunk->lru);
    }
    if (chunk->file != NULL && store->opened.next != &chunk->opened) {
        cg_list_remove(&chunk->opened);
        cg_list_push_front(&store->opened, &chunk->opened);
    }
    chunk->refs++;
    return chunk;
}

void cg_chunk_put(struct cg_chunk *chunk) {
    if (--chunk->refs > 0) {
        return;
    }
    struct cg_store *store = chunk->copyset->store;
    if (chunk->state == CG_CHUNK_BROKEN) {
        forget(chunk); // the next request looks again
    }
    cg_deliver_unblock(store); // it may leave now
}

// ---- A file that is to be replaced

void cg_chunk_hold(struct cg_chunk *chunk) {
    assert(chunk->state == CG_CHUNK_BROKEN && chunk->refs > 0);
    chunk->state = CG_CHUNK_LOADING; // until cg_chunk_release
    cg_chunk_close(chunk);
}

void cg_chunk_release(struct cg_chunk *chunk) {
    chunk->recovering = false; // if its file was replaced; otherwise it is damaged still
    cg_chunk_reload(chunk);
    cg_chunk_put(chunk);
}

void cg_chunk_cool(struct cg_chunk *chunk) {
    struct cg_store *store = chunk->copyset->store;
    cg_list_remove(&chunk->lru);
    cg_list_push_back(&store->chunk_lru, &chunk->lru);
    cg_chunk_close(chunk);
}

// ---- Local readers

// Gives a local reader a descriptor of its own, which it cannot write through.
static int find_shared(void *context, uint32_t pool, uint32_t copyset_id, uint64_t chunk_id,
                       uint32_t *slot) {
    struct cg_store *store = context;
    struct cg_copyset *copyset = cg_store_copyset(store, pool, copyset_id);
    struct cg_chunk *chunk = copyset != NULL ? cg_chunk_find(copyset, chunk_id) : NULL;
    if (chunk == NULL || chunk->state != CG_CHUNK_READY || !chunk->exists ||
        store->disk_error != 0 || !cg_copyset_leads(copyset)) {
        return -ENOENT;
    }
    int result = cg_chunk_open(chunk, false);
    if (result != 0) {
        return -ENOENT;
    }
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", chunk->file->handle);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    *slot = chunk->slot_index;
    return fd < 0 ? -ENOENT : fd;
}

int cg_store_share(struct cg_store *store, const char *address) {
    if (store->share == NULL) {
        return -ENOTSUP;
    }
    return cg_local_share_listen(store->share, store->reactor, address, find_shared, store);
}
