// SPDX-License-Identifier: BSD-3-Clause
//
// Start: copies of entries that were written again at the log's end (copyset_log_move.c).
#include <errno.h>
#include <stdlib.h>

#include "chunkserver/copyset_log_internal.h"

void log_copies_drop(struct cg_copyset_log *log) {
    free(log->copies.copy);
    log->copies = (struct log_copies){0};
}

// Copies come in the order of their indexes; one that does not follow begins another move.
static struct log_copy *next_copy(struct log_copies *copies, uint64_t index) {
    if (copies->count > 0 && copies->copy[copies->count - 1].index + 1 != index) {
        copies->count = 0;
    }
    if (copies->count == copies->size) {
        size_t size = copies->size == 0 ? 64 : 2 * copies->size;
        struct log_copy *larger = realloc(copies->copy, size * sizeof(*larger));
        if (larger == NULL) {
            return NULL;
        }
        copies->copy = larger;
        copies->size = size;
    }
    return &copies->copy[copies->count++];
}

int log_restore_copy(struct cg_copyset_log *log, uint64_t lsn, const struct cg_wal_record *record) {
    uint32_t type;
    const uint8_t *meta;
    uint32_t meta_length;
    int result = cg_record_copy_decode(record, &type, &meta, &meta_length);
    if (result != 0) {
        return result;
    }
    struct log_copy *copy = next_copy(&log->copies, record->index);
    if (copy == NULL) {
        return -ENOMEM;
    }
    *copy = (struct log_copy){
        .lsn = lsn,
        .index = record->index,
        .term = record->term,
        .type = type,
        .bytes = meta_length + record->payload_length,
    };
    if (type == CG_ENTRY_CONFIG &&
        cg_log_config_decode(meta, meta_length, &copy->config) != (int64_t)meta_length) {
        return -EBADMSG;
    }
    return 0;
}

// The replay may have begun behind the copies, or some of them: behind one that is above the base
// only if its entry was overwritten at once, which what follows must show.
static int take(struct cg_copyset_log *log, uint64_t first, uint64_t last) {
    const struct log_copies *copies = &log->copies;
    if (last <= log->index.base) {
        return 0;
    }
    if (copies->count == 0 || copies->copy[copies->count - 1].index != last) {
        log->copies_lack = first > log->index.base ? first : log->index.base + 1;
        return 0;
    }
    for (size_t i = 0; i < copies->count; i++) {
        const struct log_copy *copy = &copies->copy[i];
        if (copy->index < first || copy->index <= log->index.base) {
            continue;
        }
        struct cg_raft_entry entry = {.term = copy->term};
        if (copy->type == CG_ENTRY_CONFIG) {
            entry.type = CG_RAFT_ENTRY_CONFIG;
            entry.config = &copy->config;
        }
        int result = log_restore_entry(log, copy->lsn, copy->index, copy->bytes, &entry);
        if (result != 0) {
            return result;
        }
    }
    return 0;
}

int log_restore_moved(struct cg_copyset_log *log, const struct cg_wal_record *record) {
    uint64_t first;
    int result = cg_record_moved_decode(record, &first);
    if (result == 0) {
        result = take(log, first, record->index);
    }
    log_copies_drop(log);
    return result;
}
