// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/cdb.h"

#define OPCODE_COMPARE_AND_WRITE 0x89

struct cdb_range cdb_range(const uint8_t *cdb) {
    struct cdb_range range = {0, 0};
    switch (cdb[0] >> 5) {
    case 0:
        range.lba = (uint64_t)(cdb[1] & 0x1f) << 16 | cdb_get16(cdb + 2);
        range.blocks = cdb[4] != 0 ? cdb[4] : 256;
        break;
    case 1:
    case 2:
        range.lba = cdb_get32(cdb + 2);
        range.blocks = cdb_get16(cdb + 7);
        break;
    case 4:
        range.lba = cdb_get64(cdb + 2);
        range.blocks = cdb[0] == OPCODE_COMPARE_AND_WRITE ? cdb[13] : cdb_get32(cdb + 10);
        break;
    case 5:
        range.lba = cdb_get32(cdb + 2);
        range.blocks = cdb_get32(cdb + 6);
        break;
    default:
        break;
    }
    return range;
}

bool cdb_range_fits(struct cdb_range range, uint64_t capacity) {
    return range.blocks == 0 ? range.lba < capacity
                             : range.lba < capacity && range.blocks <= capacity - range.lba;
}
