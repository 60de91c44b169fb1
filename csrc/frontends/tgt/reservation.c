// SPDX-License-Identifier: GPL-2.0-only
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "frontends/tgt/reservation_internal.h"

bool reservation_name(char out[RESERVATION_NAME_SIZE], const char *initiator,
                      const uint8_t isid[6]) {
    if (initiator[0] == '\0')
        return false;
    int length = snprintf(out, RESERVATION_NAME_SIZE, "%s,i,0x%02x%02x%02x%02x%02x%02x", initiator,
                          isid[0], isid[1], isid[2], isid[3], isid[4], isid[5]);
    return length > 0 && length < RESERVATION_NAME_SIZE;
}

bool reservation_type_valid(uint32_t type) {
    return type == PR_WRITE_EXCLUSIVE || type == PR_EXCLUSIVE_ACCESS ||
           (type >= PR_WRITE_EXCLUSIVE_REGISTRANTS && type <= PR_EXCLUSIVE_ACCESS_ALL);
}

bool reservation_type_all(uint32_t type) {
    return type == PR_WRITE_EXCLUSIVE_ALL || type == PR_EXCLUSIVE_ACCESS_ALL;
}

bool reservation_type_registrants(uint32_t type) {
    return type >= PR_WRITE_EXCLUSIVE_REGISTRANTS && type <= PR_EXCLUSIVE_ACCESS_ALL;
}

bool reservation_same_nexus(const char *initiator_port, uint32_t target_port,
                            const struct reservation_nexus *nexus) {
    return target_port == nexus->target_port && strcmp(initiator_port, nexus->initiator_port) == 0;
}

int reservation_find(const reservation_state *state, const struct reservation_nexus *nexus) {
    for (int i = 0; i < (int)state->registrations_count; i++) {
        const reservation_registration *one = &state->registrations[i];
        if (reservation_same_nexus(one->initiator_port, one->target_port, nexus))
            return i;
    }
    return -1;
}

bool reservation_holds(const reservation_state *state, int registration) {
    if (registration < 0 || state->type == PR_NONE)
        return false;
    return reservation_type_all(state->type) || state->registrations[registration].holder;
}

void reservation_end(reservation_state *state) {
    state->has_type = false;
    state->type = PR_NONE;
    for (unsigned i = 0; i < state->registrations_count; i++) {
        state->registrations[i].has_holder = false;
        state->registrations[i].holder = false;
    }
}

void reservation_remove(reservation_state *state, int registration) {
    assert(registration >= 0 && registration < (int)state->registrations_count);
    bool held = state->registrations[registration].holder;
    unsigned after = state->registrations_count - (unsigned)registration - 1;
    memmove(&state->registrations[registration], &state->registrations[registration + 1],
            after * sizeof(state->registrations[0]));
    state->registrations_count--;
    if (held || state->registrations_count == 0)
        reservation_end(state);
}

static bool reserved_by_anyone(const reservation_state *state) {
    return state->has_reserved_by && state->reserved_by[0] != '\0';
}

static bool reserved_by(const reservation_state *state, const struct reservation_nexus *nexus) {
    return reserved_by_anyone(state) &&
           reservation_same_nexus(state->reserved_by, state->reserved_port, nexus);
}

// SPC-4, exceptions to the SPC-2 commands: a holder, and a registrant where registrants have
// access, are told GOOD, and nothing changes.
static bool excepted(const reservation_state *state, const struct reservation_nexus *nexus) {
    int own = reservation_find(state, nexus);
    return reservation_holds(state, own) || (own >= 0 && reservation_type_registrants(state->type));
}

// Bits of the CDB that ask for what SPC-2 has for third parties and extents.
static bool third_party(const uint8_t *cdb) {
    bool long_form = cdb[0] == 0x56 || cdb[0] == 0x57;
    return long_form ? (cdb[1] & 0x13) != 0 : (cdb[1] & 0x11) != 0;
}

struct bs_status reservation_reserve(reservation_state *state,
                                     const struct reservation_nexus *nexus, const uint8_t *cdb) {
    if (third_party(cdb))
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    if (excepted(state, nexus))
        return outcome_good();
    if (state->registrations_count > 0)
        return outcome_conflict();
    if (reserved_by_anyone(state))
        return reserved_by(state, nexus) ? outcome_good() : outcome_conflict();
    state->has_reserved_by = true;
    strcpy(state->reserved_by, nexus->initiator_port);
    state->has_reserved_port = true;
    state->reserved_port = nexus->target_port;
    return outcome_good();
}

struct bs_status reservation_release(reservation_state *state,
                                     const struct reservation_nexus *nexus, const uint8_t *cdb) {
    if (third_party(cdb))
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    if (excepted(state, nexus))
        return outcome_good();
    if (state->registrations_count > 0)
        return outcome_conflict();
    (void)reservation_drop(state, nexus);
    return outcome_good();
}

bool reservation_drop(reservation_state *state, const struct reservation_nexus *nexus) {
    if (!reserved_by_anyone(state) || (nexus != NULL && !reserved_by(state, nexus)))
        return false;
    state->has_reserved_by = false;
    state->reserved_by[0] = '\0';
    state->has_reserved_port = false;
    state->reserved_port = 0;
    return true;
}

bool reservation_valid(const reservation_state *state) {
    if (state->registrations_count > RESERVATION_REGISTRATIONS_MAX)
        return false;
    if (state->type != PR_NONE && !reservation_type_valid(state->type))
        return false;
    unsigned holders = 0;
    for (unsigned i = 0; i < state->registrations_count; i++) {
        const reservation_registration *one = &state->registrations[i];
        struct reservation_nexus nexus = {one->initiator_port, one->target_port};
        if (one->key == 0 || one->initiator_port[0] == '\0' ||
            reservation_find(state, &nexus) != (int)i)
            return false;
        holders += one->holder;
    }
    if (reserved_by_anyone(state) && state->registrations_count > 0)
        return false;
    if (state->type == PR_NONE)
        return holders == 0;
    return reservation_type_all(state->type) ? holders == 0 && state->registrations_count > 0
                                             : holders == 1;
}
