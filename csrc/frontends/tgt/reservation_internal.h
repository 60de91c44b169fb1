// SPDX-License-Identifier: GPL-2.0-only
//
// What the files of reservation.h share.
#ifndef COPYGATE_TGT_RESERVATION_INTERNAL_H
#define COPYGATE_TGT_RESERVATION_INTERNAL_H

#include "frontends/tgt/reservation.h"

typedef copygate_iscsi_Registration reservation_registration;

static inline uint64_t reservation_be64(const uint8_t *p) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | p[i];
    return value;
}

static inline struct bs_status outcome_good(void) {
    return (struct bs_status){.status = SAM_GOOD};
}

static inline struct bs_status outcome_conflict(void) {
    return (struct bs_status){.status = SAM_RESERVATION_CONFLICT};
}

static inline struct bs_status outcome_illegal(uint16_t asc) {
    return (struct bs_status){SAM_CHECK_CONDITION, KEY_ILLEGAL_REQUEST, asc};
}

bool reservation_type_valid(uint32_t type);
// Types 7 and 8: every registrant holds the reservation.
bool reservation_type_all(uint32_t type);
// Types 5 to 8: every registrant has access.
bool reservation_type_registrants(uint32_t type);

bool reservation_same_nexus(const char *initiator_port, uint32_t target_port,
                            const struct reservation_nexus *nexus);
// The registration of a nexus, or -1.
int reservation_find(const reservation_state *state, const struct reservation_nexus *nexus);
bool reservation_holds(const reservation_state *state, int registration);
// Removes it, and what is left of the reservation if it was held by it alone.
void reservation_remove(reservation_state *state, int registration);
// No reservation; the registrations stay.
void reservation_end(reservation_state *state);

// Reads the iSCSI TransportID at `data` into a port's name; its length in bytes, or 0 if it is not
// one that names an initiator port.
size_t reservation_transport_id_parse(const uint8_t *data, size_t length,
                                      char name[RESERVATION_NAME_SIZE]);
// Writes one; its length (at most 4 + RESERVATION_NAME_SIZE).
size_t reservation_transport_id_encode(const char *name, uint8_t *out);

#endif
