// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/alua.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum {
    SUPPORTED_STATES = 0x80 | 0x04 | 0x01, // transitioning, standby, active/optimized
    STATUS_NONE = 0x00,
    STATUS_SET = 0x01,          // changed by SET TARGET PORT GROUPS
    IMPLICIT_TRANSITION_S = 20, // a takeover may wait for the other's lease
};

static uint32_t be16(const uint8_t *p) {
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t be32(const uint8_t *p) {
    return be16(p) << 16 | be16(p + 2);
}

static uint8_t *put16(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
    return p + 2;
}

static bool is_own(const copygate_iscsi_PortGroup *group, const struct alua_own *own) {
    return group->id == own->group && strcmp(group->gateway, own->gateway) == 0;
}

static enum alua_state group_state(const lun_shared_state *shared, const struct alua_own *own,
                                   const copygate_iscsi_PortGroup *group) {
    if (is_own(group, own))
        return own->state;
    // Two of us cannot be active: whoever says so of itself while the volume is ours has not heard.
    bool active = shared->has_active_gateway &&
                  strcmp(shared->active_gateway, group->gateway) == 0 &&
                  own->state != ALUA_OPTIMIZED;
    return active ? ALUA_OPTIMIZED : ALUA_STANDBY;
}

static uint8_t *put_group(uint8_t *p, uint32_t id, enum alua_state state, const uint32_t *ports,
                          unsigned count) {
    *p++ = (uint8_t)state;
    *p++ = SUPPORTED_STATES;
    p = put16(p, id);
    *p++ = 0;
    *p++ = state == ALUA_OPTIMIZED ? STATUS_SET : STATUS_NONE;
    *p++ = 0;
    *p++ = (uint8_t)count;
    for (unsigned i = 0; i < count; i++)
        p = put16(put16(p, 0), ports[i]);
    return p;
}

struct bs_status alua_report(const lun_shared_state *shared, const struct alua_own *own,
                             const uint8_t *cdb, uint8_t out[ALUA_REPORT_MAX], size_t *length) {
    *length = 0;
    unsigned format = cdb[1] >> 5;
    if (format > 1)
        return (struct bs_status){SAM_CHECK_CONDITION, KEY_ILLEGAL_REQUEST,
                                  ASC_INVALID_FIELD_IN_CDB};
    uint8_t *p = out + 4;
    if (format == 1) {
        *p++ = 0x10;
        *p++ = IMPLICIT_TRANSITION_S;
        p = put16(p, 0);
    }
    bool own_listed = false;
    for (unsigned i = 0; i < shared->groups_count; i++) {
        const copygate_iscsi_PortGroup *group = &shared->groups[i];
        own_listed |= is_own(group, own);
        p = put_group(p, group->id, group_state(shared, own, group), group->ports,
                      group->ports_count);
    }
    if (!own_listed)
        p = put_group(p, own->group, own->state, &own->port, 1);
    *length = (size_t)(p - out);
    assert(*length <= ALUA_REPORT_MAX);
    put16(put16(out, 0), (uint32_t)*length - 4);
    return (struct bs_status){.status = SAM_GOOD};
}

static struct bs_status illegal(uint16_t asc) {
    return (struct bs_status){SAM_CHECK_CONDITION, KEY_ILLEGAL_REQUEST, asc};
}

static struct bs_status set_failed(void) {
    return (struct bs_status){SAM_CHECK_CONDITION, KEY_HARDWARE_ERROR, ASC_SET_GROUPS_FAILED};
}

// What one descriptor asks for.
static struct bs_status parse_descriptor(const lun_shared_state *shared, const struct alua_own *own,
                                         const uint8_t *data, bool *take_over) {
    unsigned state = data[0] & 0x0f;
    uint32_t id = be16(data + 2);
    if (state != ALUA_OPTIMIZED && state != ALUA_STANDBY)
        return illegal(ASC_INVALID_FIELD_IN_PARAMETERS);
    enum alua_state now = ALUA_STANDBY;
    bool ours = id == own->group;
    bool known = ours;
    if (ours)
        now = own->state;
    for (unsigned i = 0; i < shared->groups_count && !known; i++) {
        if (shared->groups[i].id == id) {
            known = true;
            now = group_state(shared, own, &shared->groups[i]);
        }
    }
    if (!known)
        return illegal(ASC_INVALID_FIELD_IN_PARAMETERS);
    if (ours && state == ALUA_OPTIMIZED && now != ALUA_OPTIMIZED) {
        *take_over = true;
        return (struct bs_status){.status = SAM_GOOD};
    }
    if (state == now)
        return (struct bs_status){.status = SAM_GOOD};
    // "The other one to standby" comes with "this one to active" in one list, in either order.
    if (!ours && state == ALUA_STANDBY)
        return (struct bs_status){.status = SAM_GOOD};
    return set_failed();
}

static bool others_to(enum alua_state state, const struct alua_own *own, const uint8_t *data,
                      size_t length) {
    for (size_t at = 4; at < length; at += 4) {
        if (be16(data + at + 2) != own->group && (data[at] & 0x0f) == (unsigned)state)
            return true;
    }
    return false;
}

struct bs_status alua_parse_set(const lun_shared_state *shared, const struct alua_own *own,
                                const uint8_t *cdb, const uint8_t *data, size_t length,
                                bool *take_over) {
    *take_over = false;
    uint32_t announced = be32(cdb + 6);
    if (announced == 0)
        return (struct bs_status){.status = SAM_GOOD};
    if (announced < 4 || announced % 4 != 0 || length < announced)
        return illegal(ASC_PARAMETER_LENGTH);
    for (size_t at = 4; at < announced; at += 4) {
        struct bs_status outcome = parse_descriptor(shared, own, data + at, take_over);
        if (outcome.status != SAM_GOOD) {
            *take_over = false;
            return outcome;
        }
    }
    // What this gateway takes over is no other's any more.
    if (*take_over && others_to(ALUA_OPTIMIZED, own, data, announced)) {
        *take_over = false;
        return set_failed();
    }
    // The active group of another gateway steps back when this one takes over, not otherwise.
    bool other_active = own->state != ALUA_OPTIMIZED && shared->has_active_gateway &&
                        strcmp(shared->active_gateway, own->gateway) != 0;
    if (!*take_over && other_active && others_to(ALUA_STANDBY, own, data, announced))
        return set_failed();
    return (struct bs_status){.status = SAM_GOOD};
}

static bool answered_in_standby(const uint8_t *cdb) {
    switch (cdb[0]) {
    case 0x03: // REQUEST SENSE
    case 0x12: // INQUIRY
    case 0x15: // MODE SELECT(6)
    case 0x55: // MODE SELECT(10)
    case 0x1a: // MODE SENSE(6)
    case 0x5a: // MODE SENSE(10)
    case 0x4c: // LOG SELECT
    case 0x4d: // LOG SENSE
    case 0x1c: // RECEIVE DIAGNOSTIC RESULTS
    case 0x1d: // SEND DIAGNOSTIC
    case 0x5e: // PERSISTENT RESERVE IN
    case 0x5f: // PERSISTENT RESERVE OUT
    case 0xa0: // REPORT LUNS
    case 0xa3: // MAINTENANCE IN: REPORT TARGET PORT GROUPS and the like
    case 0x25: // READ CAPACITY(10): without it Linux gives the path no size, and multipath drops it
        return true;
    case 0x9e: // READ CAPACITY(16)
        return (cdb[1] & 0x1f) == 0x10;
    case 0xa4: // SET TARGET PORT GROUPS
        return (cdb[1] & 0x1f) == 0x0a;
    default:
        return false;
    }
}

struct bs_status alua_access(enum alua_state state, const uint8_t *cdb) {
    if (state == ALUA_OPTIMIZED || answered_in_standby(cdb))
        return (struct bs_status){.status = SAM_GOOD};
    return (struct bs_status){SAM_CHECK_CONDITION, KEY_NOT_READY,
                              state == ALUA_TRANSITIONING ? ASC_TRANSITION : ASC_STANDBY};
}

// SPC-4 7.8.6: protocol iSCSI, binary, associated with the target port.
static void put_designator(uint8_t *p, uint8_t type, uint32_t value) {
    memset(p, 0, 8);
    p[0] = 0x51;
    p[1] = 0x90 | type;
    p[3] = 4;
    put16(p + 6, value);
}

void alua_designators(const struct alua_own *own, uint8_t out[ALUA_DESCRIPTORS_SIZE]) {
    put_designator(out, 0x4, own->port);
    put_designator(out + 8, 0x5, own->group);
}

static bool lists_port(const copygate_iscsi_PortGroup *group, uint32_t port) {
    for (unsigned i = 0; i < group->ports_count; i++) {
        if (group->ports[i] == port)
            return true;
    }
    return false;
}

static bool lists_portal(const copygate_iscsi_PortGroup *group, const char *portal) {
    for (unsigned i = 0; i < group->portals_count; i++) {
        if (strcmp(group->portals[i], portal) == 0)
            return true;
    }
    return false;
}

static int refresh(copygate_iscsi_PortGroup *group, const struct alua_own *own, const char *portal,
                   bool *changed) {
    if (!lists_port(group, own->port)) {
        if (group->ports_count == sizeof(group->ports) / sizeof(group->ports[0]))
            return -ENOSPC;
        group->ports[group->ports_count++] = own->port;
        *changed = true;
    }
    if (portal == NULL || strlen(portal) >= sizeof(group->portals[0]) ||
        lists_portal(group, portal))
        return 0;
    // They are to show alone: a gateway that moved from address to address keeps its newest ones.
    unsigned room = sizeof(group->portals) / sizeof(group->portals[0]);
    if (group->portals_count == room) {
        memmove(group->portals[0], group->portals[1], sizeof(group->portals[0]) * (room - 1));
        group->portals_count--;
    }
    strcpy(group->portals[group->portals_count++], portal);
    *changed = true;
    return 0;
}

// A place for a new group, behind all others. Nobody tells of a gateway that leaves for good: of as
// many as there can be, the first makes room, but for the active gateway's. One that is there after
// all still reports itself.
static copygate_iscsi_PortGroup *new_group(lun_shared_state *shared) {
    if (shared->groups_count == ALUA_GROUPS_MAX) {
        unsigned first = 0;
        while (first < ALUA_GROUPS_MAX - 1 && shared->has_active_gateway &&
               strcmp(shared->groups[first].gateway, shared->active_gateway) == 0)
            first++;
        memmove(&shared->groups[first], &shared->groups[first + 1],
                sizeof(shared->groups[0]) * (ALUA_GROUPS_MAX - 1 - first));
        shared->groups_count--;
    }
    copygate_iscsi_PortGroup *group = &shared->groups[shared->groups_count++];
    memset(group, 0, sizeof(*group));
    return group;
}

int alua_publish(lun_shared_state *shared, const struct alua_own *own, const char *portal,
                 bool *changed) {
    *changed = false;
    copygate_iscsi_PortGroup *found = NULL;
    for (unsigned i = 0; i < shared->groups_count; i++) {
        copygate_iscsi_PortGroup *group = &shared->groups[i];
        if (strcmp(group->gateway, own->gateway) != 0) {
            if (group->id == own->group || lists_port(group, own->port))
                return -EEXIST;
        } else if (group->id == own->group) {
            found = group;
        }
    }
    if (found != NULL)
        return refresh(found, own, portal, changed);
    found = new_group(shared);
    found->id = own->group;
    assert(strlen(own->gateway) < sizeof(found->gateway));
    strcpy(found->gateway, own->gateway);
    *changed = true;
    return refresh(found, own, portal, changed);
}

void alua_ports(const lun_shared_state *shared, struct reservation_ports *out) {
    out->count = 0;
    for (unsigned i = 0; i < shared->groups_count; i++) {
        for (unsigned j = 0; j < shared->groups[i].ports_count; j++)
            out->ids[out->count++] = shared->groups[i].ports[j];
    }
}
