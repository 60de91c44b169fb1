// SPDX-License-Identifier: GPL-2.0-only
//
// Reservations of a logical unit: PERSISTENT RESERVE IN and OUT (SPC-4), RESERVE and RELEASE
// (SPC-2, with the exceptions that SPC-4 makes beside persistent reservations), and which commands
// they let through. Pure: from a state and a command to a new state and an answer, without IO and
// without tgtd. lun_state.h keeps the state and tells initiators.
//
// An I_T nexus is known by the initiator port's name, made of the initiator's name and ISID, and by
// the relative target port identifier; so a session that logs in again with the same name and ISID
// is the same nexus, on every process that serves the port.
#ifndef COPYGATE_TGT_RESERVATION_H
#define COPYGATE_TGT_RESERVATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frontends/tgt/sense.h"
#include "gateway/proto/iscsi.pb.h"

typedef copygate_iscsi_ReservationState reservation_state;

enum {
    RESERVATION_REGISTRATIONS_MAX = 128,
    RESERVATION_NAME_SIZE = 256, // of an initiator port's name, with its final 0
    RESERVATION_PORTS_MAX = 256, // target ports that a logical unit knows
    RESERVATION_IN_MAX = 40960,  // the longest PERSISTENT RESERVE IN answer
};

// Additional sense codes of reservations alone.
enum {
    ASC_INVALID_RELEASE = 0x2604,
    ASC_RESERVATIONS_RELEASED = 0x2a04,
    ASC_REGISTRATIONS_PREEMPTED = 0x2a05,
    ASC_NO_REGISTRATION_RESOURCES = 0x5504,
};

enum reservation_out_action {
    PR_REGISTER = 0,
    PR_RESERVE = 1,
    PR_RELEASE = 2,
    PR_CLEAR = 3,
    PR_PREEMPT = 4,
    PR_PREEMPT_AND_ABORT = 5,
    PR_REGISTER_AND_IGNORE = 6,
    PR_REGISTER_AND_MOVE = 7,
};

enum reservation_type {
    PR_NONE = 0,
    PR_WRITE_EXCLUSIVE = 1,
    PR_EXCLUSIVE_ACCESS = 3,
    PR_WRITE_EXCLUSIVE_REGISTRANTS = 5,
    PR_EXCLUSIVE_ACCESS_REGISTRANTS = 6,
    PR_WRITE_EXCLUSIVE_ALL = 7,
    PR_EXCLUSIVE_ACCESS_ALL = 8,
};

struct reservation_nexus {
    const char *initiator_port; // "name,i,0x" and 12 hexadecimal digits
    uint32_t target_port;
};

// Writes the name of an initiator port. Returns false if it does not fit or the name is empty.
bool reservation_name(char out[RESERVATION_NAME_SIZE], const char *initiator,
                      const uint8_t isid[6]);

// --- PERSISTENT RESERVE OUT

struct reservation_request {
    uint8_t action; // enum reservation_out_action
    uint8_t scope;
    uint8_t type;
    uint64_t key;
    uint64_t action_key;
    bool aptpl;
    bool all_target_ports; // ALL_TG_PT
    bool named_initiators; // SPEC_I_PT
    bool unregister;       // UNREG of REGISTER AND MOVE
    uint32_t move_port;    // REGISTER AND MOVE: relative target port identifier
    // SPEC_I_PT, REGISTER AND MOVE: TransportIDs; points into the parameter list.
    const uint8_t *transport_ids;
    size_t transport_ids_length;
};

// Decodes a command. `length` bytes of the parameter list at `data` have arrived.
struct bs_status reservation_parse_out(const uint8_t *cdb, const uint8_t *data, size_t length,
                                       struct reservation_request *request);

// Target ports of the logical unit, for ALL_TG_PT and REGISTER AND MOVE.
struct reservation_ports {
    uint32_t ids[RESERVATION_PORTS_MAX];
    unsigned count;
};

// Does what the request asks on `state`, which is unchanged unless the outcome is GOOD.
struct bs_status reservation_out(reservation_state *state, const struct reservation_nexus *nexus,
                                 const struct reservation_request *request,
                                 const struct reservation_ports *ports);

// --- PERSISTENT RESERVE IN

// Encodes the answer for the service action in `cdb` into `out`; *length is what it has in full:
// the caller sends at most the allocation length of the CDB.
struct bs_status reservation_in(const reservation_state *state, const uint8_t *cdb,
                                uint8_t out[RESERVATION_IN_MAX], size_t *length);

// --- RESERVE and RELEASE

struct bs_status reservation_reserve(reservation_state *state,
                                     const struct reservation_nexus *nexus, const uint8_t *cdb);
struct bs_status reservation_release(reservation_state *state,
                                     const struct reservation_nexus *nexus, const uint8_t *cdb);

// Ends what RESERVE made: a logical unit reset, or (nexus not NULL) the end of a nexus. Returns
// whether there was something.
bool reservation_drop(reservation_state *state, const struct reservation_nexus *nexus);

// --- Every command

// Whether the reservations let the nexus send this command. PERSISTENT RESERVE OUT, RESERVE and
// RELEASE pass where the functions above decide. A NULL nexus is an unknown initiator, which holds
// and is registered for nothing.
bool reservation_allows(const reservation_state *state, const struct reservation_nexus *nexus,
                        const uint8_t *cdb);

// --- What others have to be told

struct reservation_notice {
    const char *initiator_port; // points into the old state
    uint32_t target_port;
    uint16_t code; // unit attention for this nexus
    bool abort;    // PREEMPT AND ABORT: its commands have to end before the change is acknowledged
};

// Compares two states and says who has to be told what; by the gateway that made the change, and by
// each that learns of it. `out` has room for RESERVATION_REGISTRATIONS_MAX. Returns the count.
unsigned reservation_notices(const reservation_state *before, const reservation_state *after,
                             struct reservation_notice *out);

// Whether some nexus may do less after the change than before, so that IO that was let in before
// has to end until the change is acknowledged.
bool reservation_forbids_more(const reservation_state *before, const reservation_state *after);

// Whether a state that was read from elsewhere keeps the rules that the functions above rely on.
bool reservation_valid(const reservation_state *state);

#endif
