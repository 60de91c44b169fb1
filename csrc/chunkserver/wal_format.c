// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/wal_format.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "base/crc32c.h"

#define SEGMENT_MAGIC UINT64_C(0x31474553574743f3) // not ASCII throughout: no text file matches
#define BATCH_MAGIC   0xc7b47cf1U

#define SEGMENT_CRC_OFFSET 8U
#define BATCH_CRC_OFFSET   4U

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "wal_record_decode hands out block_crcs as they are on disk");

static void put32(uint8_t *out, uint32_t value) {
    value = htole32(value);
    memcpy(out, &value, sizeof(value));
}

static void put64(uint8_t *out, uint64_t value) {
    value = htole64(value);
    memcpy(out, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *in) {
    uint32_t value;
    memcpy(&value, in, sizeof(value));
    return le32toh(value);
}

static uint64_t get64(const uint8_t *in) {
    uint64_t value;
    memcpy(&value, in, sizeof(value));
    return le64toh(value);
}

// ---- Segment header: magic u64, crc u32 (of the block from byte 12), version u32, uuid 16,
// sequence u64, incarnation u64, start_lsn u64, durable_lsn u64; zeros to the end of the block.

void wal_segment_header_encode(const struct wal_segment_header *header, uint8_t *out) {
    memset(out, 0, CG_WAL_BLOCK);
    put64(out, SEGMENT_MAGIC);
    put32(out + 12, WAL_VERSION);
    memcpy(out + 16, header->uuid, WAL_UUID_SIZE);
    put64(out + 32, header->sequence);
    put64(out + 40, header->incarnation);
    put64(out + 48, header->start_lsn);
    put64(out + 56, header->durable_lsn);
    put32(out + SEGMENT_CRC_OFFSET, cg_crc32c(0, out + 12, CG_WAL_BLOCK - 12));
}

static bool all_zero(const uint8_t *block) {
    return block[0] == 0 && memcmp(block, block + 1, CG_WAL_BLOCK - 1) == 0;
}

int wal_segment_header_decode(const uint8_t *block, struct wal_segment_header *out) {
    if (all_zero(block)) {
        return -ENODATA;
    }
    if (get64(block) != SEGMENT_MAGIC ||
        get32(block + SEGMENT_CRC_OFFSET) != cg_crc32c(0, block + 12, CG_WAL_BLOCK - 12)) {
        return -EBADMSG;
    }
    if (get32(block + 12) != WAL_VERSION) {
        return -EPROTONOSUPPORT;
    }
    memcpy(out->uuid, block + 16, WAL_UUID_SIZE);
    out->sequence = get64(block + 32);
    out->incarnation = get64(block + 40);
    out->start_lsn = get64(block + 48);
    out->durable_lsn = get64(block + 56);
    return 0;
}

// ---- Batch header: magic u32, crc u32 (of the used region from byte 8, seeded), sequence u64,
// incarnation u64, lsn u64, durable_lsn u64, used u32, region u32, payload u32, record_count u32,
// 8 bytes zero.

static uint32_t region_crc(const uint8_t uuid[WAL_UUID_SIZE], const uint8_t *region,
                           uint32_t used) {
    uint32_t seed = cg_crc32c(0, uuid, WAL_UUID_SIZE);
    return cg_crc32c(seed, region + 8, used - 8);
}

void wal_batch_seal(const struct wal_batch_header *header, const uint8_t uuid[WAL_UUID_SIZE],
                    uint8_t *region) {
    assert(header->used >= WAL_BATCH_HEADER_SIZE && header->used <= WAL_REGION_MAX);
    assert(header->region == wal_region_size(header->used));
    memset(region + header->used, 0, header->region - header->used);
    put32(region, BATCH_MAGIC);
    put64(region + 8, header->sequence);
    put64(region + 16, header->incarnation);
    put64(region + 24, header->lsn);
    put64(region + 32, header->durable_lsn);
    put32(region + 40, header->used);
    put32(region + 44, header->region);
    put32(region + 48, header->payload);
    put32(region + 52, header->record_count);
    put64(region + 56, 0);
    put32(region + BATCH_CRC_OFFSET, region_crc(uuid, region, header->used));
}

bool wal_batch_peek(const uint8_t *block, struct wal_batch_header *out) {
    if (get32(block) != BATCH_MAGIC) {
        return false;
    }
    out->sequence = get64(block + 8);
    out->incarnation = get64(block + 16);
    out->lsn = get64(block + 24);
    out->durable_lsn = get64(block + 32);
    out->used = get32(block + 40);
    out->region = get32(block + 44);
    out->payload = get32(block + 48);
    out->record_count = get32(block + 52);
    return out->used >= WAL_BATCH_HEADER_SIZE && out->used <= WAL_REGION_MAX &&
           out->region == wal_region_size(out->used) && out->payload % CG_WAL_BLOCK == 0 &&
           wal_batch_total(out) <= WAL_BATCH_MAX;
}

bool wal_batch_region_valid(const struct wal_batch_header *header,
                            const uint8_t uuid[WAL_UUID_SIZE], const uint8_t *region) {
    return get32(region + BATCH_CRC_OFFSET) == region_crc(uuid, region, header->used);
}

// ---- Record header: group u64, term u64, index u64, type u32, meta_length u32, payload_length
// u32, 12 bytes zero; then meta, padded to 8 bytes; then the block CRCs, padded to 8 bytes.

static uint32_t pad8(uint32_t length) {
    return (length + 7U) & ~7U;
}

bool wal_record_legal(const struct cg_wal_record *record) {
    return record->meta_length <= CG_WAL_META_MAX && record->payload_length <= CG_WAL_PAYLOAD_MAX &&
           record->payload_length % CG_WAL_BLOCK == 0;
}

uint32_t wal_record_encoded_size(const struct cg_wal_record *record) {
    return WAL_RECORD_HEADER_SIZE + pad8(record->meta_length) +
           pad8(record->payload_length / CG_WAL_BLOCK * 4U);
}

void wal_record_encode(const struct cg_wal_record *record, uint8_t *out) {
    put64(out, record->group);
    put64(out + 8, record->term);
    put64(out + 16, record->index);
    put32(out + 24, record->type);
    put32(out + 28, record->meta_length);
    put32(out + 32, record->payload_length);
    memset(out + 36, 0, 12);
    out += WAL_RECORD_HEADER_SIZE;
    if (record->meta_length != 0) {
        uint32_t padded = pad8(record->meta_length);
        memset(out + padded - 8, 0, 8);
        memcpy(out, record->meta, record->meta_length);
        out += padded;
    }
    uint32_t blocks = record->payload_length / CG_WAL_BLOCK;
    if (blocks != 0) {
        memset(out + pad8(blocks * 4U) - 8, 0, 8);
        for (uint32_t i = 0; i < blocks; i++) {
            put32(out + 4U * i, record->block_crcs[i]);
        }
    }
}

int wal_record_decode(const uint8_t *region, uint32_t used, uint32_t *position,
                      struct cg_wal_record *out) {
    uint32_t at = *position;
    if (at > used || used - at < WAL_RECORD_HEADER_SIZE) {
        return -EBADMSG;
    }
    const uint8_t *in = region + at;
    out->group = get64(in);
    out->term = get64(in + 8);
    out->index = get64(in + 16);
    out->type = get32(in + 24);
    out->meta_length = get32(in + 28);
    out->payload_length = get32(in + 32);
    if (!wal_record_legal(out) || wal_record_encoded_size(out) > used - at) {
        return -EBADMSG;
    }
    const uint8_t *meta = in + WAL_RECORD_HEADER_SIZE;
    out->meta = out->meta_length != 0 ? meta : NULL;
    // Aligned: regions are, and everything before is padded to 8 bytes.
    const void *crcs = meta + pad8(out->meta_length);
    out->block_crcs = crcs;
    *position = at + wal_record_encoded_size(out);
    return 0;
}

int wal_payload_verify(const struct cg_wal_record *record, const uint8_t *payload) {
    for (uint32_t b = 0; b < record->payload_length / CG_WAL_BLOCK; b++) {
        const uint8_t *stored = (const uint8_t *)record->block_crcs + (size_t)b * 4U;
        if (cg_crc32c(0, payload + (size_t)b * CG_WAL_BLOCK, CG_WAL_BLOCK) != get32(stored)) {
            return -EBADMSG;
        }
    }
    return 0;
}

int wal_batch_verify(const struct wal_batch_header *header, const uint8_t *region,
                     const uint8_t *payload) {
    uint32_t position = WAL_BATCH_HEADER_SIZE;
    uint32_t offset = 0;
    for (uint32_t i = 0; i < header->record_count; i++) {
        struct cg_wal_record record;
        int status = wal_record_decode(region, header->used, &position, &record);
        if (status < 0 || record.payload_length > header->payload - offset ||
            wal_payload_verify(&record, payload + offset) < 0) {
            return -EBADMSG;
        }
        offset += record.payload_length;
    }
    return position == header->used && offset == header->payload ? 0 : -EBADMSG;
}
