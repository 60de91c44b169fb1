// SPDX-License-Identifier: GPL-2.0-only
//
// The INQUIRY data of a LUN: standard data and vital product data. All of it comes from the volume
// and the LUN's options, so that every gateway tells the same of a volume. Pure.
#ifndef CG_FRONTENDS_TGT_IDENTITY_H
#define CG_FRONTENDS_TGT_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>

struct identity {
    const uint8_t *uuid; // 16 bytes, the volume's
    const char *target;  // IQN
    uint32_t block_size; // logical
    uint16_t group;      // target port group and relative port
    uint16_t port;
    uint8_t tpgs; // TPGS field of standard data
    bool thin;
    bool present; // false: the addressed LUN does not exist
};

#define IDENTITY_MAX 1024U // bytes of any page

// Standard INQUIRY data. Returns its length; `out` has IDENTITY_MAX bytes.
uint32_t identity_standard(const struct identity *identity, uint8_t *out);

// A vital product data page; 0 when there is none of this code.
uint32_t identity_page(const struct identity *identity, uint8_t page, uint8_t *out);

// The NAA designator (type 6, 16 bytes) made from a UUID: a company id of the locally administered
// kind, then all bits of the UUID folded into the 100 that are left.
void identity_naa(const uint8_t uuid[16], uint8_t out[16]);

#endif
