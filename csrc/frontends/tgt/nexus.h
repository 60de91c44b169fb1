// SPDX-License-Identifier: GPL-2.0-only
//
// Who is at the other end of an iSCSI session. tgtd knows a session by a number that a login makes
// anew; reservations go by the initiator port's name, which is the same after every login.
#ifndef COPYGATE_TGT_NEXUS_H
#define COPYGATE_TGT_NEXUS_H

#include "frontends/tgt/reservation.h"
#include "frontends/tgt/tgt_abi.h"

enum { NEXUS_TRANSPORT_ID_MAX = 512 };

// Reads what tgtd makes of a session: a TransportID with the name, a 0, ",i,0x" and the ISID as six
// bytes; or, as the standard has it, the name and ",i,0x" in one text with the ISID's digits. Pure.
// Returns false if it is neither.
bool nexus_parse(const uint8_t *id, size_t length, char name[RESERVATION_NAME_SIZE]);

// The name of the initiator port of session `nexus_id` of a target. Returns false if there is no
// such session, or this tgtd does not tell.
bool nexus_name(int tid, uint64_t nexus_id, char name[RESERVATION_NAME_SIZE]);

// Whether this tgtd can tell at all.
bool nexus_names_known(void);

#endif
