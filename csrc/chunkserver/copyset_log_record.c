// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/copyset_log_record.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "chunkserver/bytes.h"

enum {
    CONFIG_HEAD = 8,  // count, zero
    MEMBER_SIZE = 16, // id, flags, zero
    MEMBER_LEARNER = 1U << 0,
    INSTALL_HEAD = 8, // flags, zero
    INSTALL_VOIDS = 1U << 0,
    COPY_HEAD = 8, // type, zero
    MOVED_SIZE = 8,
};

size_t cg_log_config_encode(const struct cg_raft_config *config,
                            uint8_t out[CG_LOG_CONFIG_SIZE_MAX]) {
    cg_put_u32(out, config->count);
    cg_put_u32(out + 4, 0);
    for (uint32_t i = 0; i < config->count; i++) {
        uint8_t *at = out + CONFIG_HEAD + (size_t)i * MEMBER_SIZE;
        cg_put_u64(at, config->member[i].id);
        cg_put_u32(at + 8, config->member[i].learner ? MEMBER_LEARNER : 0);
        cg_put_u32(at + 12, 0);
    }
    return CONFIG_HEAD + (size_t)config->count * MEMBER_SIZE;
}

int64_t cg_log_config_decode(const uint8_t *in, size_t length, struct cg_raft_config *out) {
    *out = (struct cg_raft_config){0};
    if (length < CONFIG_HEAD || cg_get_u32(in) > CG_RAFT_MEMBERS_MAX || cg_get_u32(in + 4) != 0) {
        return -EBADMSG;
    }
    uint32_t count = cg_get_u32(in);
    size_t size = CONFIG_HEAD + (size_t)count * MEMBER_SIZE;
    if (length < size) {
        return -EBADMSG;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *at = in + CONFIG_HEAD + (size_t)i * MEMBER_SIZE;
        uint32_t flags = cg_get_u32(at + 8);
        if (cg_get_u64(at) == 0 || (flags & ~(uint32_t)MEMBER_LEARNER) != 0 ||
            cg_get_u32(at + 12) != 0) {
            return -EBADMSG;
        }
        out->member[i] = (struct cg_raft_member){
            .id = cg_get_u64(at),
            .learner = (flags & MEMBER_LEARNER) != 0,
        };
        for (uint32_t j = 0; j < i; j++) {
            if (out->member[j].id == out->member[i].id) {
                return -EBADMSG;
            }
        }
    }
    out->count = count;
    return (int64_t)size;
}

void cg_record_state_encode(uint64_t vote, uint8_t out[CG_RECORD_STATE_SIZE]) {
    cg_put_u64(out, vote);
}

int cg_record_state_decode(const struct cg_wal_record *record, uint64_t *vote) {
    if (record->type != CG_RECORD_STATE || record->meta_length != CG_RECORD_STATE_SIZE ||
        record->payload_length != 0) {
        return -EBADMSG;
    }
    *vote = cg_get_u64(record->meta);
    return 0;
}

size_t cg_record_install_encode(const struct cg_record_install *install,
                                uint8_t out[CG_RECORD_INSTALL_SIZE_MAX]) {
    cg_put_u32(out, install->voids ? INSTALL_VOIDS : 0);
    cg_put_u32(out + 4, 0);
    return INSTALL_HEAD + cg_log_config_encode(&install->config, out + INSTALL_HEAD);
}

int cg_record_install_decode(const struct cg_wal_record *record, struct cg_record_install *out) {
    const uint8_t *in = record->meta;
    if (record->type != CG_RECORD_INSTALL || record->meta_length < INSTALL_HEAD ||
        record->payload_length != 0 || (cg_get_u32(in) & ~(uint32_t)INSTALL_VOIDS) != 0 ||
        cg_get_u32(in + 4) != 0) {
        return -EBADMSG;
    }
    out->voids = (cg_get_u32(in) & INSTALL_VOIDS) != 0;
    size_t length = record->meta_length - INSTALL_HEAD;
    int64_t used = cg_log_config_decode(in + INSTALL_HEAD, length, &out->config);
    return used == (int64_t)length ? 0 : -EBADMSG;
}

size_t cg_record_copy_encode(const struct cg_log_entry *entry, uint8_t *out) {
    assert(entry->meta_length <= CG_WAL_META_MAX - COPY_HEAD);
    cg_put_u32(out, entry->type);
    cg_put_u32(out + 4, 0);
    if (entry->meta_length > 0) {
        memcpy(out + COPY_HEAD, entry->meta, entry->meta_length);
    }
    return COPY_HEAD + entry->meta_length;
}

int cg_record_copy_decode(const struct cg_wal_record *record, uint32_t *type, const uint8_t **meta,
                          uint32_t *meta_length) {
    const uint8_t *in = record->meta;
    if (record->type != CG_RECORD_COPY || record->meta_length < COPY_HEAD ||
        cg_get_u32(in) >= CG_WAL_TYPE_STATE || cg_get_u32(in + 4) != 0) {
        return -EBADMSG;
    }
    *type = cg_get_u32(in);
    *meta = in + COPY_HEAD;
    *meta_length = record->meta_length - COPY_HEAD;
    return 0;
}

size_t cg_record_moved_encode(uint64_t first, uint8_t *out) {
    cg_put_u64(out, first);
    return MOVED_SIZE;
}

int cg_record_moved_decode(const struct cg_wal_record *record, uint64_t *first) {
    if (record->type != CG_RECORD_MOVED || record->meta_length != MOVED_SIZE ||
        record->payload_length != 0) {
        return -EBADMSG;
    }
    *first = cg_get_u64(record->meta);
    return *first > 0 && *first <= record->index ? 0 : -EBADMSG;
}
