// SPDX-License-Identifier: GPL-2.0-only
//
// Asymmetric logical unit access (SPC-4): the gateway that owns the volume is active/optimized, all
// others are standby, and a gateway that is told so becomes the active one. Pure: lun_state.h takes
// the volume over.
#ifndef COPYGATE_TGT_ALUA_H
#define COPYGATE_TGT_ALUA_H

#include "frontends/tgt/reservation.h"

typedef copygate_iscsi_LunState lun_shared_state;

enum {
    ALUA_TPGS_BITS = 0x30, // byte 5 of the standard INQUIRY data: implicit and explicit
    ALUA_GROUPS_MAX = 16,
    ALUA_REPORT_MAX = 2048, // the longest REPORT TARGET PORT GROUPS answer
    ALUA_DESCRIPTORS_SIZE = 16,
};

enum { ASC_SET_GROUPS_FAILED = 0x670a };

enum alua_state {
    ALUA_OPTIMIZED = 0x0,
    ALUA_STANDBY = 0x2,
    ALUA_TRANSITIONING = 0xf,
};

// This gateway, as its target's options describe it.
struct alua_own {
    const char *gateway;
    uint32_t group; // target port group, 1 to 65535
    uint32_t port;  // relative target port identifier, 1 to 65535
    enum alua_state state;
};

// Encodes REPORT TARGET PORT GROUPS for the CDB, either format, into `out`; *length is what it has
// in full. Groups of the shared state are active if their gateway is its active one; the own group
// has the own state, and is there even if the shared state does not have it yet.
struct bs_status alua_report(const lun_shared_state *shared, const struct alua_own *own,
                             const uint8_t *cdb, uint8_t out[ALUA_REPORT_MAX], size_t *length);

// Decodes SET TARGET PORT GROUPS. GOOD with *take_over says that this gateway has to become the
// active one; GOOD without it, that all is as asked already. A gateway cannot hand the volume to
// another: that is asked of the other.
struct bs_status alua_parse_set(const lun_shared_state *shared, const struct alua_own *own,
                                const uint8_t *cdb, const uint8_t *data, size_t length,
                                bool *take_over);

// Whether a standby logical unit answers the command; for all others the outcome says why not.
struct bs_status alua_access(enum alua_state state, const uint8_t *cdb);

// VPD page 83h: the designators of the relative target port and of the target port group.
void alua_designators(const struct alua_own *own, uint8_t out[ALUA_DESCRIPTORS_SIZE]);

// Puts this gateway's group and port into the shared state, or refreshes it. Where there are
// ALUA_GROUPS_MAX already, it takes the place of the first that is not the active gateway's.
// Returns 0 with *changed, -ENOSPC if its group has as many ports as it can have, -EEXIST if
// another gateway has the group's or the port's number.
int alua_publish(lun_shared_state *shared, const struct alua_own *own, const char *portal,
                 bool *changed);

// The target ports of all groups.
void alua_ports(const lun_shared_state *shared, struct reservation_ports *out);

#endif
