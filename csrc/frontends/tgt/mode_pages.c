// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/mode_pages.h"

#include <string.h>

#include "frontends/tgt/cdb.h"

#define OPCODE_MODE_SELECT_6 0x15
#define OPCODE_MODE_SENSE_6  0x1a

#define PAGE_CONTROL     0x0a
#define PAGE_ALL         0x3f
#define SUBPAGE_ALL      0xff
#define CONTROL_SWP_AT   4U
#define CONTROL_SWP      0x08
#define SUBPAGE_FORMAT   0x40
#define BLOCK_DESCRIPTOR 8U
#define PAGE_MAX         32U

struct page {
    uint8_t code;
    uint8_t subpage;
    uint8_t length; // all of it
    uint8_t data[PAGE_MAX];
};

static const struct page pages[] = {
    // Read-write error recovery: AWRE, ARRE.
    {0x01, 0, 12, {0x01, 10, 0xc0}},
    // Caching: neither WCE nor RCD.
    {0x08, 0, 20, {0x08, 18}},
    // Control: GLTSD, unrestricted reordering.
    {PAGE_CONTROL, 0, 12, {PAGE_CONTROL, 10, 0x02, 0x10}},
    // Control extension.
    {PAGE_CONTROL, 1, 32, {PAGE_CONTROL | SUBPAGE_FORMAT, 1, 0, 28}},
    // Informational exceptions: DEXCPT.
    {0x1c, 0, 12, {0x1c, 10, 0x08}},
};
#define PAGE_COUNT (sizeof(pages) / sizeof(pages[0]))

static bool is_control(const struct page *page) {
    return page->code == PAGE_CONTROL && page->subpage == 0;
}

static uint8_t header_length(const struct page *page) {
    return page->subpage != 0 ? 4 : 2;
}

static void page_values(const struct page *page, const struct mode_state *state,
                        enum mode_control control, uint8_t *out) {
    memcpy(out, page->data, page->length);
    if (control == MODE_CHANGEABLE) {
        uint8_t header = header_length(page);
        memset(out + header, 0, page->length - header);
    }
    if (is_control(page) && (control == MODE_CHANGEABLE ||
                             (control == MODE_CURRENT && state->software_write_protect))) {
        out[CONTROL_SWP_AT] |= CONTROL_SWP;
    }
}

static uint8_t *block_descriptor(const struct mode_state *state, uint8_t *at) {
    cdb_put32(at, state->blocks > UINT32_MAX ? UINT32_MAX : (uint32_t)state->blocks);
    cdb_put32(at + 4, state->block_size); // its first byte is reserved
    return at + BLOCK_DESCRIPTOR;
}

static bool wanted(const struct page *page, uint8_t code, uint8_t subpage) {
    bool code_fits = code == PAGE_ALL || code == page->code;
    return code_fits && (subpage == SUBPAGE_ALL || subpage == page->subpage);
}

struct bs_status mode_sense(const struct mode_state *state, const uint8_t *cdb, uint8_t *out,
                            uint32_t *length) {
    bool six = cdb[0] == OPCODE_MODE_SENSE_6;
    bool descriptor = (cdb[1] & 0x08) == 0;
    enum mode_control control = cdb[2] >> 6;
    if (control == MODE_SAVED) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_SAVING_UNSUPPORTED);
    }
    memset(out, 0, MODE_DATA_MAX);
    uint8_t *at = out + (six ? 4 : 8);
    if (descriptor) {
        at = block_descriptor(state, at);
    }
    bool found = false;
    for (unsigned i = 0; i < PAGE_COUNT; i++) {
        if (wanted(&pages[i], cdb[2] & 0x3f, cdb[3])) {
            page_values(&pages[i], state, control, at);
            at += pages[i].length;
            found = true;
        }
    }
    if (!found) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    *length = (uint32_t)(at - out);
    uint8_t specific = (uint8_t)(0x10 | (state->protected ? 0x80 : 0)); // DPOFUA, WP
    if (six) {
        out[0] = (uint8_t)(*length - 1);
        out[2] = specific;
        out[3] = descriptor ? BLOCK_DESCRIPTOR : 0;
    } else {
        cdb_put16(out, (uint16_t)(*length - 2));
        out[3] = specific;
        out[7] = descriptor ? BLOCK_DESCRIPTOR : 0;
    }
    return BS_GOOD;
}

// The page that begins at `at`, if `left` bytes hold it; NULL otherwise.
static const struct page *page_at(const uint8_t *at, uint32_t left) {
    for (unsigned i = 0; i < PAGE_COUNT; i++) {
        const struct page *page = &pages[i];
        uint8_t header = header_length(page);
        if (left >= page->length && (at[0] & 0x7f) == page->data[0] &&
            memcmp(at + 1, page->data + 1, header - 1U) == 0) {
            return page;
        }
    }
    return NULL;
}

static bool only_changeable(const struct mode_state *state, const struct page *page,
                            const uint8_t *given) {
    uint8_t now[PAGE_MAX];
    uint8_t mask[PAGE_MAX];
    page_values(page, state, MODE_CURRENT, now);
    page_values(page, state, MODE_CHANGEABLE, mask);
    for (unsigned i = header_length(page); i < page->length; i++) {
        if (((given[i] ^ now[i]) & ~mask[i]) != 0) {
            return false;
        }
    }
    return true;
}

static struct bs_status select_pages(const struct mode_state *state, const uint8_t *at,
                                     uint32_t left, bool *software_write_protect) {
    while (left > 0) {
        if (left < 2) {
            return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_PARAMETER_LENGTH);
        }
        const struct page *page = page_at(at, left);
        // PS is reserved here.
        if (page == NULL || (at[0] & 0x80) != 0 || !only_changeable(state, page, at)) {
            return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_PARAMETERS);
        }
        if (is_control(page)) {
            *software_write_protect = (at[CONTROL_SWP_AT] & CONTROL_SWP) != 0;
        }
        at += page->length;
        left -= page->length;
    }
    return BS_GOOD;
}

struct bs_status mode_select(const struct mode_state *state, const uint8_t *cdb,
                             const uint8_t *list, uint32_t length, bool *software_write_protect) {
    bool six = cdb[0] == OPCODE_MODE_SELECT_6;
    if ((cdb[1] & 0x10) == 0 || (cdb[1] & 0x01) != 0) { // PF, SP
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    if (length == 0) {
        return BS_GOOD;
    }
    uint32_t header = six ? 4 : 8;
    if (length < header) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_PARAMETER_LENGTH);
    }
    uint32_t descriptors = six ? list[3] : cdb_get16(list + 6);
    if (descriptors > length - header) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_PARAMETER_LENGTH);
    }
    if (descriptors != 0) {
        uint8_t now[BLOCK_DESCRIPTOR];
        block_descriptor(state, now);
        // The number of blocks may be left out; the block size cannot be changed.
        if (descriptors != BLOCK_DESCRIPTOR || memcmp(now + 4, list + header + 4, 4) != 0) {
            return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_PARAMETERS);
        }
    }
    bool chosen = state->software_write_protect;
    struct bs_status status =
        select_pages(state, list + header + descriptors, length - header - descriptors, &chosen);
    if (status.status == SAM_GOOD) {
        *software_write_protect = chosen;
    }
    return status;
}
