// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/copyset_log_index.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "chunkserver/log_disk_internal.h"

#define SIZE_FIRST 64U
#define SIZE_KEPT  1024U // memory that an empty index keeps

void log_index_init(struct log_index *index, uint64_t base) {
    *index = (struct log_index){.base = base, .last = base};
}

void log_index_destroy(struct log_index *index) {
    log_index_cut(index, index->base + 1);
    free(index->slot);
}

static int resize(struct log_index *index, uint64_t size) {
    struct log_slot *slot = malloc(size * sizeof(*slot));
    if (slot == NULL) {
        return -ENOMEM;
    }
    for (uint64_t at = index->base + 1; at <= index->last; at++) {
        slot[at & (size - 1)] = index->slot[at & (index->size - 1)];
    }
    free(index->slot);
    index->slot = slot;
    index->size = size;
    return 0;
}

int log_index_reserve(struct log_index *index, uint64_t count) {
    uint64_t need = index->last - index->base + count;
    if (need <= index->size) {
        return 0;
    }
    uint64_t size = index->size == 0 ? SIZE_FIRST : index->size;
    while (size < need) {
        size *= 2;
    }
    return resize(index, size);
}

struct log_slot *log_index_push(struct log_index *index) {
    assert(index->last - index->base < index->size);
    struct log_slot *slot = &index->slot[++index->last & (index->size - 1)];
    *slot = (struct log_slot){0};
    return slot;
}

void log_index_drop(struct log_slot *slot) {
    if (slot->entry != NULL) {
        log_cache_remove(slot->entry);
        cg_log_entry_unref(slot->entry);
        slot->entry = NULL;
    }
}

void log_index_cut(struct log_index *index, uint64_t first) {
    assert(first > index->base);
    while (index->last >= first) {
        log_index_drop(log_index_at(index, index->last));
        index->last--;
    }
}

void log_index_compact(struct log_index *index, uint64_t base) {
    assert(base <= index->last);
    while (index->base < base) {
        log_index_drop(log_index_at(index, index->base + 1));
        index->base++;
    }
    if (index->base == index->last && index->size > SIZE_KEPT) {
        free(index->slot);
        index->slot = NULL;
        index->size = 0;
    }
}

void log_index_reset(struct log_index *index, uint64_t base) {
    log_index_cut(index, index->base + 1);
    index->base = base;
    index->last = base;
}
