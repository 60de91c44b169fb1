// SPDX-License-Identifier: BSD-3-Clause
//
// What a checkpoint says: made of what was captured, and taken up again at a start.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/bytes.h"
#include "chunkserver/copyset_log_record.h"
#include "chunkserver/store_internal.h"

#define FILE_HEAD 12U // u64 lsn, u32 copysets

// u64 group, u64 index, u64 its term, u64 term, u64 vote, u64 member id (0: of an earlier version),
// u32 length of the members, u32 length of windows and epochs; then these.
#define COPYSET_HEAD 56U

// Version 1: u64 group, u64 index, u64 its term, u32 length of windows and epochs.
#define COPYSET_HEAD_1 28U

static size_t encode_copyset(const struct cg_copyset *copyset, uint8_t *out) {
    const struct cg_copyset_log_saved *saved = &copyset->captured_log;
    size_t members = cg_log_config_encode(&saved->config, out + COPYSET_HEAD);
    cg_put_u64(out, copyset->group);
    cg_put_u64(out + 8, saved->index);
    cg_put_u64(out + 16, saved->index_term);
    cg_put_u64(out + 24, saved->term);
    cg_put_u64(out + 32, saved->vote);
    cg_put_u64(out + 40, copyset->member.self);
    cg_put_u32(out + 48, (uint32_t)members);
    cg_put_u32(out + 52, (uint32_t)copyset->captured_length);
    memcpy(out + COPYSET_HEAD + members, copyset->captured, copyset->captured_length);
    return COPYSET_HEAD + members + copyset->captured_length;
}

int cg_checkpoint_build(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    size_t room = FILE_HEAD;
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        room += COPYSET_HEAD + CG_LOG_CONFIG_SIZE_MAX + store->copysets[i]->captured_length;
    }
    checkpoint->data = malloc(room);
    if (checkpoint->data == NULL) {
        return -ENOMEM;
    }
    cg_put_u64(checkpoint->data, checkpoint->lsn);
    cg_put_u32(checkpoint->data + 8, checkpoint->copysets);
    checkpoint->length = FILE_HEAD;
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        checkpoint->length +=
            encode_copyset(store->copysets[i], checkpoint->data + checkpoint->length);
    }
    return 0;
}

// ---- Restoring

int cg_copyset_decode(struct cg_copyset *copyset, const uint8_t *state, size_t length) {
    int64_t dedup = cg_dedup_decode(&copyset->dedup, state, length);
    if (dedup < 0) {
        return (int)dedup;
    }
    int64_t epochs = cg_epoch_table_decode(&copyset->epochs, state + dedup, length - (size_t)dedup);
    if (epochs < 0) {
        return (int)epochs;
    }
    return (size_t)(dedup + epochs) == length ? 0 : -EBADMSG;
}

// What stands before the members and the state, and how long these are.
struct head {
    uint64_t group;
    uint64_t member;
    struct cg_copyset_log_saved base;
    size_t length;
    size_t members;
    size_t state;
};

static int decode_head(const uint8_t *in, size_t length, uint32_t version, struct head *out) {
    *out = (struct head){.length = version == 1 ? COPYSET_HEAD_1 : COPYSET_HEAD};
    if (length < out->length) {
        return -EBADMSG;
    }
    out->group = cg_get_u64(in);
    out->base.index = cg_get_u64(in + 8);
    out->base.index_term = cg_get_u64(in + 16);
    if (version == 1) {
        out->base.term = out->base.index_term;
        out->state = cg_get_u32(in + 24);
    } else {
        out->base.term = cg_get_u64(in + 24);
        out->base.vote = cg_get_u64(in + 32);
        out->member = cg_get_u64(in + 40);
        out->members = cg_get_u32(in + 48);
        out->state = cg_get_u32(in + 52);
    }
    size_t rest = length - out->length;
    return rest >= out->members && rest - out->members >= out->state ? 0 : -EBADMSG;
}

static int restore_copyset(struct cg_store *store, const uint8_t *in, size_t length,
                           uint32_t version, size_t *used) {
    struct head head;
    int result = decode_head(in, length, version, &head);
    if (result != 0) {
        return result;
    }
    *used = head.length + head.members + head.state;
    struct cg_copyset *copyset = cg_copyset_of_group(store, head.group);
    if (copyset == NULL) {
        return cg_copyset_gone(store, head.group) ? 0 : -ENOENT;
    }
    if (head.member != 0 && head.member != copyset->member.self) {
        // Of a replica that was removed before this one came; its file would be there.
        return copyset->member.self != 0 ? 0 : -ENOENT;
    }
    if (head.members > 0 && cg_log_config_decode(in + head.length, head.members,
                                                 &head.base.config) != (int64_t)head.members) {
        return -EBADMSG;
    }
    copyset->base = head.base;
    copyset->applied_index = head.base.index;
    copyset->delivered_index = head.base.index;
    result = cg_copyset_decode(copyset, in + head.length + head.members, head.state);
    if (result == 0) {
        cg_copyset_state_restored(copyset);
    }
    return result;
}

static int restore(struct cg_store *store, const uint8_t *data, size_t length, uint32_t version,
                   uint64_t *lsn) {
    if (length < FILE_HEAD) {
        return -EBADMSG;
    }
    *lsn = cg_get_u64(data);
    uint32_t copysets = cg_get_u32(data + 8);
    size_t at = FILE_HEAD;
    for (uint32_t i = 0; i < copysets; i++) {
        size_t used = 0;
        int result = restore_copyset(store, data + at, length - at, version, &used);
        if (result != 0) {
            return result;
        }
        at += used;
    }
    return at == length ? 0 : -EBADMSG;
}

int cg_checkpoint_restore(struct cg_store *store, uint64_t *lsn, char *error, size_t error_size) {
    uint8_t *data = NULL;
    size_t length = 0;
    *lsn = 0;
    uint32_t version = 0;
    int result = cg_checkpoint_load(store->disk, &data, &length, &version);
    if (result == 0 && data != NULL) {
        result = restore(store, data, length, version, lsn);
        free(data);
    }
    if (result == -ENOENT) {
        snprintf(
            error, error_size,
            "the folder, or the file \"member\", of a copyset that the checkpoint knows is gone");
        return -EBADMSG;
    }
    if (result != 0) {
        snprintf(error, error_size, "cannot use the checkpoint: %s",
                 result == -EBADMSG ? "it is damaged" : strerror(-result));
    }
    return result;
}
