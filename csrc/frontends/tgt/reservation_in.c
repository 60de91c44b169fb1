// SPDX-License-Identifier: GPL-2.0-only
#include <assert.h>
#include <string.h>

#include "frontends/tgt/reservation_internal.h"

enum {
    READ_KEYS = 0,
    READ_RESERVATION = 1,
    REPORT_CAPABILITIES = 2,
    READ_FULL_STATUS = 3,
};

static uint8_t *put16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
    return p + 2;
}

static uint8_t *put32(uint8_t *p, uint32_t value) {
    return put16(put16(p, value >> 16), value & 0xffff);
}

static uint8_t *put64(uint8_t *p, uint64_t value) {
    return put32(put32(p, (uint32_t)(value >> 32)), (uint32_t)value);
}

static uint8_t *read_keys(const reservation_state *state, uint8_t *p) {
    for (unsigned i = 0; i < state->registrations_count; i++)
        p = put64(p, state->registrations[i].key);
    return p;
}

static uint8_t *read_reservation(const reservation_state *state, uint8_t *p) {
    if (state->type == PR_NONE)
        return p;
    // Where every registrant holds it, it has no key of its own.
    uint64_t key = 0;
    for (unsigned i = 0; i < state->registrations_count; i++) {
        if (state->registrations[i].holder)
            key = state->registrations[i].key;
    }
    p = put64(p, key);
    p = put32(p, 0);
    *p++ = 0;
    *p++ = (uint8_t)state->type;
    return put16(p, 0);
}

static uint8_t *read_full_status(const reservation_state *state, uint8_t *p) {
    for (unsigned i = 0; i < state->registrations_count; i++) {
        const reservation_registration *one = &state->registrations[i];
        bool holds = reservation_holds(state, (int)i);
        p = put64(p, one->key);
        p = put32(p, 0);
        *p++ = holds ? 0x01 : 0x00;
        *p++ = holds ? (uint8_t)state->type : 0;
        p = put32(p, 0);
        p = put16(p, one->target_port);
        size_t length = reservation_transport_id_encode(one->initiator_port, p + 4);
        p = put32(p, (uint32_t)length) + length;
    }
    return p;
}

static void report_capabilities(const reservation_state *state, uint8_t out[8]) {
    memset(out, 0, 8);
    out[1] = 8;
    out[2] = 0x10 | 0x08 | 0x04 | 0x01;           // CRH, SIP_C, ATP_C, PTPL_C
    out[3] = 0x80 | (state->aptpl ? 0x01 : 0x00); // TMV, PTPL_A
    out[4] = 0x80 | 0x40 | 0x20 | 0x08 | 0x02;    // types 7, 6, 5, 3, 1
    out[5] = 0x01;                                // type 8
}

struct bs_status reservation_in(const reservation_state *state, const uint8_t *cdb,
                                uint8_t out[RESERVATION_IN_MAX], size_t *length) {
    *length = 0;
    uint8_t action = cdb[1] & 0x1f;
    if (action > READ_FULL_STATUS)
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    if (state->has_reserved_by && state->reserved_by[0] != '\0')
        return outcome_conflict();
    if (action == REPORT_CAPABILITIES) {
        report_capabilities(state, out);
        *length = 8;
        return outcome_good();
    }
    uint8_t *end = out + 8;
    if (action == READ_KEYS)
        end = read_keys(state, end);
    else if (action == READ_RESERVATION)
        end = read_reservation(state, end);
    else
        end = read_full_status(state, end);
    *length = (size_t)(end - out);
    assert(*length <= RESERVATION_IN_MAX);
    put32(put32(out, state->generation), (uint32_t)(*length - 8));
    return outcome_good();
}
