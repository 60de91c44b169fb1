// SPDX-License-Identifier: GPL-2.0-only
//
// SPC-4's and SBC-3's tables of commands that are allowed in the presence of reservations.
#include "frontends/tgt/reservation_internal.h"

enum access {
    ACCESS_ANY,    // allowed whoever holds the reservation
    ACCESS_READ,   // conflicts with exclusive access
    ACCESS_WRITE,  // conflicts with every reservation of another
    ACCESS_DECIDES // the command's own rules
};

static enum access maintenance_in(uint8_t action) {
    (void)action; // all of them report
    return ACCESS_ANY;
}

static enum access service_action_in(uint8_t action) {
    return action == 0x10 ? ACCESS_ANY : ACCESS_READ; // READ CAPACITY(16); GET LBA STATUS
}

// START with the unit's power condition left alone.
static enum access start_stop(const uint8_t *cdb) {
    return (cdb[4] & 0xf0) == 0 && (cdb[4] & 0x03) == 0x01 ? ACCESS_ANY : ACCESS_WRITE;
}

static enum access classify(const uint8_t *cdb) {
    switch (cdb[0]) {
    case 0x00: // TEST UNIT READY
    case 0x03: // REQUEST SENSE
    case 0x12: // INQUIRY
    case 0x25: // READ CAPACITY(10)
    case 0x4d: // LOG SENSE
    case 0x5e: // PERSISTENT RESERVE IN
    case 0xa0: // REPORT LUNS
    case 0xab: // SERVICE ACTION IN(12)
        return ACCESS_ANY;
    case 0xa3:
        return maintenance_in(cdb[1] & 0x1f);
    case 0x1b:
        return start_stop(cdb);
    case 0x1e: // PREVENT ALLOW MEDIUM REMOVAL
        return (cdb[4] & 0x03) == 0 ? ACCESS_ANY : ACCESS_WRITE;
    case 0x16: // RESERVE(6)
    case 0x17: // RELEASE(6)
    case 0x56: // RESERVE(10)
    case 0x57: // RELEASE(10)
    case 0x5f: // PERSISTENT RESERVE OUT
        return ACCESS_DECIDES;
    case 0x08: // READ(6)
    case 0x28: // READ(10)
    case 0xa8: // READ(12)
    case 0x88: // READ(16)
    case 0x1a: // MODE SENSE(6)
    case 0x5a: // MODE SENSE(10)
    case 0x1c: // RECEIVE DIAGNOSTIC RESULTS
    case 0x2f: // VERIFY(10)
    case 0xaf: // VERIFY(12)
    case 0x8f: // VERIFY(16)
    case 0x34: // PRE-FETCH(10)
    case 0x90: // PRE-FETCH(16)
    case 0x37: // READ DEFECT DATA(10)
    case 0xb7: // READ DEFECT DATA(12)
    case 0x3c: // READ BUFFER
    case 0x8c: // READ ATTRIBUTE
    case 0xa2: // SECURITY PROTOCOL IN
        return ACCESS_READ;
    case 0x9e:
        return service_action_in(cdb[1] & 0x1f);
    default:
        // Whatever writes, and whatever this table does not know.
        return ACCESS_WRITE;
    }
}

// SPC-2's RESERVE lets others do less than a persistent reservation does.
static bool passes_reserve(const uint8_t *cdb) {
    switch (cdb[0]) {
    case 0x03:
    case 0x12:
    case 0xa0:
    case 0x25:
    case 0x4d:
    case 0xa3:
        return true;
    case 0x9e:
        return (cdb[1] & 0x1f) == 0x10;
    case 0x1e:
    case 0x1b:
        return classify(cdb) == ACCESS_ANY;
    case 0x5e:
    case 0x5f:
    case 0x16:
    case 0x17:
    case 0x56:
    case 0x57:
        return true; // they refuse it themselves, with their own checks before
    default:
        return false;
    }
}

bool reservation_allows(const reservation_state *state, const struct reservation_nexus *nexus,
                        const uint8_t *cdb) {
    if (state->has_reserved_by && state->reserved_by[0] != '\0') {
        if (nexus != NULL &&
            reservation_same_nexus(state->reserved_by, state->reserved_port, nexus))
            return true;
        return passes_reserve(cdb);
    }
    if (state->type == PR_NONE)
        return true;
    int own = nexus == NULL ? -1 : reservation_find(state, nexus);
    if (reservation_holds(state, own) || (own >= 0 && reservation_type_registrants(state->type)))
        return true;
    bool exclusive = state->type == PR_EXCLUSIVE_ACCESS ||
                     state->type == PR_EXCLUSIVE_ACCESS_REGISTRANTS ||
                     state->type == PR_EXCLUSIVE_ACCESS_ALL;
    switch (classify(cdb)) {
    case ACCESS_ANY:
    case ACCESS_DECIDES:
        return true;
    case ACCESS_READ:
        return !exclusive;
    default:
        return false;
    }
}
