// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/identity.h"

#include <stdio.h>
#include <string.h>

#include "frontends/tgt/cdb.h"
#include "frontends/tgt/limits.h"
#include "frontends/tgt/module.h"

#define VENDOR   "COPYGATE"
#define PRODUCT  "VOLUME          "
#define REVISION "0001"

#define NO_DEVICE 0x7f

// Nobody is registered under it: bit 1 of the first octet says locally administered.
#define COMPANY 0x024347U

#define SERIAL_LENGTH 32U

enum { CODE_BINARY = 1, CODE_ASCII = 2, CODE_UTF8 = 3 };
enum { OF_UNIT = 0x00, OF_PORT = 0x10, OF_DEVICE = 0x20 };
enum {
    DESIGNATOR_T10 = 1,
    DESIGNATOR_NAA = 3,
    DESIGNATOR_PORT = 4,
    DESIGNATOR_GROUP = 5,
    DESIGNATOR_NAME = 8,
};
#define PROTOCOL_ISCSI 0x50 // in the designator's first byte, with PIV in the second
#define PIV            0x80

static void serial_of(const uint8_t uuid[16], char out[SERIAL_LENGTH + 1]) {
    for (unsigned i = 0; i < 16; i++) {
        snprintf(out + (size_t)2 * i, 3, "%02x", uuid[i]);
    }
}

void identity_naa(const uint8_t uuid[16], uint8_t out[16]) {
    // Nibbles: 6, six of the company, 25 of the volume. The last seven of the UUID are folded in.
    uint8_t nibbles[32];
    nibbles[0] = 6;
    for (unsigned i = 0; i < 6; i++) {
        nibbles[1 + i] = COMPANY >> (20 - 4 * i) & 0xf;
    }
    for (unsigned i = 0; i < 25; i++) {
        nibbles[7 + i] = uuid[i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xf;
    }
    for (unsigned i = 25; i < 32; i++) {
        nibbles[i] ^= uuid[i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xf;
    }
    for (unsigned i = 0; i < 16; i++) {
        out[i] = (uint8_t)(nibbles[2 * i] << 4 | nibbles[2 * i + 1]);
    }
}

uint32_t identity_standard(const struct identity *identity, uint8_t *out) {
    static const uint16_t versions[] = {
        0x0080, // SAM-4
        0x0960, // iSCSI
        0x0460, // SPC-4
        0x04c0, // SBC-3
    };
    const uint32_t length = 96;
    memset(out, 0, length);
    out[0] = identity->present ? 0 : NO_DEVICE;
    out[2] = 6;    // SPC-4
    out[3] = 0x12; // HISUP, response data format 2
    out[4] = (uint8_t)(length - 5);
    out[5] = identity->tpgs;
    out[7] = 0x02; // CMDQUE
    memcpy(out + 8, VENDOR PRODUCT REVISION, 28);
    for (unsigned i = 0; i < sizeof(versions) / sizeof(versions[0]); i++) {
        cdb_put16(out + 58 + (size_t)2 * i, versions[i]);
    }
    return length;
}

static uint8_t *designator(uint8_t *at, uint8_t code, uint8_t kind, const void *data,
                           uint8_t length) {
    at[0] = code;
    at[1] = kind;
    at[2] = 0;
    at[3] = length;
    memcpy(at + 4, data, length);
    return at + 4 + length;
}

// SCSI name strings end with a NUL and are filled up to a multiple of four.
static uint8_t *name_designator(uint8_t *at, uint8_t kind, const char *format, const char *target,
                                unsigned group) {
    char name[256] = "";
    int length = snprintf(name, sizeof(name), format, target, group);
    if (length < 0 || length >= 252) {
        return at; // longer than iSCSI allows: nothing rather than a part
    }
    uint8_t whole = (uint8_t)((length + 4) / 4 * 4);
    return designator(at, PROTOCOL_ISCSI | CODE_UTF8, (uint8_t)(PIV | kind | DESIGNATOR_NAME), name,
                      whole);
}

static uint8_t *page_83(const struct identity *identity, uint8_t *at) {
    uint8_t naa[16];
    char t10[8 + SERIAL_LENGTH + 1] = VENDOR;
    uint8_t number[4] = {0};
    identity_naa(identity->uuid, naa);
    serial_of(identity->uuid, t10 + 8);
    at = designator(at, CODE_BINARY, OF_UNIT | DESIGNATOR_NAA, naa, sizeof(naa));
    at = designator(at, CODE_ASCII, OF_UNIT | DESIGNATOR_T10, t10, sizeof(t10) - 1);
    cdb_put16(number + 2, identity->port);
    at = designator(at, PROTOCOL_ISCSI | CODE_BINARY, PIV | OF_PORT | DESIGNATOR_PORT, number, 4);
    cdb_put16(number + 2, identity->group);
    at = designator(at, PROTOCOL_ISCSI | CODE_BINARY, PIV | OF_PORT | DESIGNATOR_GROUP, number, 4);
    // tgtd has one iSCSI portal group, with the tag 1.
    at = name_designator(at, OF_PORT, "%s,t,0x%04x", identity->target, 1);
    return name_designator(at, OF_DEVICE, "%s", identity->target, 0);
}

static uint8_t *page_b0(const struct identity *identity, uint8_t *at) {
    uint32_t block = identity->block_size;
    memset(at, 0, 60);
    at[0] = 0x01; // WSNZ: a WRITE SAME says how many blocks
    at[1] = BS_COMPARE_BLOCKS;
    cdb_put16(at + 2, (uint16_t)(BS_PHYSICAL_BLOCK / block));
    cdb_put32(at + 4, BS_TRANSFER_MAX / block);
    cdb_put32(at + 8, BS_OPTIMAL_TRANSFER / block);
    if (identity->thin) {
        cdb_put32(at + 16, BS_UNMAP_BLOCKS);
        cdb_put32(at + 20, BS_UNMAP_DESCRIPTORS);
        cdb_put32(at + 24, BS_PHYSICAL_BLOCK / block);
        cdb_put32(at + 28, 0x80000000U); // the alignment is known: 0
    }
    cdb_put64(at + 32, BS_SAME_MAX / block);
    return at + 60;
}

static uint8_t *page_b1(uint8_t *at) {
    memset(at, 0, 60);
    cdb_put16(at, 1); // does not rotate
    return at + 60;
}

static uint8_t *page_b2(const struct identity *identity, uint8_t *at) {
    memset(at, 0, 4);
    if (identity->thin) {
        at[1] = 0xe4; // LBPU, LBPWS, LBPWS10, LBPRZ
        at[2] = 0x02; // thin
    }
    return at + 4;
}

static uint8_t *page_86(uint8_t *at) {
    memset(at, 0, 60);
    at[1] = 0x07; // HEADSUP, ORDSUP, SIMPSUP
    return at + 60;
}

static uint8_t *page_80(const struct identity *identity, uint8_t *at) {
    char serial[SERIAL_LENGTH + 1];
    serial_of(identity->uuid, serial);
    memcpy(at, serial, SERIAL_LENGTH);
    return at + SERIAL_LENGTH;
}

static uint8_t *page_00(uint8_t *at) {
    static const uint8_t pages[] = {0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2};
    memcpy(at, pages, sizeof(pages));
    return at + sizeof(pages);
}

uint32_t identity_page(const struct identity *identity, uint8_t page, uint8_t *out) {
    uint8_t *body = out + 4;
    uint8_t *end;
    switch (page) {
    case 0x00:
        end = page_00(body);
        break;
    case 0x80:
        end = page_80(identity, body);
        break;
    case 0x83:
        end = page_83(identity, body);
        break;
    case 0x86:
        end = page_86(body);
        break;
    case 0xb0:
        end = page_b0(identity, body);
        break;
    case 0xb1:
        end = page_b1(body);
        break;
    case 0xb2:
        end = page_b2(identity, body);
        break;
    default:
        return 0;
    }
    out[0] = identity->present ? 0 : NO_DEVICE;
    out[1] = page;
    cdb_put16(out + 2, (uint16_t)(end - body));
    return (uint32_t)(end - out);
}
