// SPDX-License-Identifier: GPL-2.0-only
#include <string.h>

#include "frontends/tgt/reservation_internal.h"

static bool preempting(uint32_t action) {
    return action == PR_PREEMPT || action == PR_PREEMPT_AND_ABORT;
}

// What a nexus is told that has lost its registration. 0: nothing, it was its own doing.
static uint16_t lost(const copygate_iscsi_ReservationChange *change,
                     const reservation_registration *one) {
    if (change->action == PR_CLEAR)
        return ASC_RESERVATIONS_PREEMPTED;
    if (preempting(change->action))
        return ASC_REGISTRATIONS_PREEMPTED;
    // Unregistered by ALL_TG_PT through another port. Others' registrations end by CLEAR or PREEMPT
    // alone: a change before the last one, of which this gateway has not heard, did it.
    if (strcmp(change->initiator_port, one->initiator_port) == 0)
        return 0;
    return ASC_REGISTRATIONS_PREEMPTED;
}

// What a nexus is told that keeps its registration.
static uint16_t kept(const reservation_state *before, const reservation_state *after) {
    if (before->type == PR_NONE || after->type == before->type)
        return 0;
    if (after->type == PR_NONE)
        return reservation_type_registrants(before->type) ? ASC_RESERVATIONS_RELEASED : 0;
    return preempting(after->change.action) ? ASC_RESERVATIONS_RELEASED : 0;
}

unsigned reservation_notices(const reservation_state *before, const reservation_state *after,
                             struct reservation_notice *out) {
    unsigned count = 0;
    if (!after->has_change)
        return 0;
    const copygate_iscsi_ReservationChange *change = &after->change;
    struct reservation_nexus actor = {change->initiator_port, change->target_port};
    for (unsigned i = 0; i < before->registrations_count; i++) {
        const reservation_registration *one = &before->registrations[i];
        if (reservation_same_nexus(one->initiator_port, one->target_port, &actor))
            continue;
        struct reservation_nexus nexus = {one->initiator_port, one->target_port};
        bool gone = reservation_find(after, &nexus) < 0;
        uint16_t asc = gone ? lost(change, one) : kept(before, after);
        if (asc == 0)
            continue;
        out[count++] = (struct reservation_notice){
            .initiator_port = one->initiator_port,
            .target_port = one->target_port,
            .code = asc,
            .abort = gone && change->action == PR_PREEMPT_AND_ABORT,
        };
    }
    return count;
}

// Whether the nexus of `one` had access that it might have lost.
static bool loses(const reservation_state *before, const reservation_state *after,
                  const reservation_registration *one) {
    struct reservation_nexus nexus = {one->initiator_port, one->target_port};
    static const uint8_t write_cdb[16] = {0x8a};
    return reservation_allows(before, &nexus, write_cdb) &&
           !reservation_allows(after, &nexus, write_cdb);
}

bool reservation_forbids_more(const reservation_state *before, const reservation_state *after) {
    if (after->has_reserved_by && !before->has_reserved_by)
        return true;
    if (after->type == PR_NONE)
        return false;
    // Who is not registered: nothing about them but the type matters.
    if (after->type != before->type)
        return true;
    for (unsigned i = 0; i < before->registrations_count; i++) {
        if (loses(before, after, &before->registrations[i]))
            return true;
    }
    return false;
}
