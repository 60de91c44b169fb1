// SPDX-License-Identifier: GPL-2.0-only
//
// One function for each service action of PERSISTENT RESERVE OUT. They work on the caller's copy of
// the state: what is refused halfway is thrown away by reservation_out.
#include <stdlib.h>
#include <string.h>

#include "frontends/tgt/reservation_internal.h"

struct change {
    reservation_state *state;
    const struct reservation_nexus *nexus;
    const struct reservation_request *request;
    const struct reservation_ports *ports;
    int own;     // the nexus's registration, or -1
    bool counts; // PRGENERATION grows, and the change is noted
};

static void hold(reservation_state *state, int registration, uint32_t type) {
    reservation_end(state);
    state->has_type = true;
    state->type = type;
    if (!reservation_type_all(type)) {
        state->registrations[registration].has_holder = true;
        state->registrations[registration].holder = true;
    }
}

// Adds a registration or changes its key.
static struct bs_status set_key(reservation_state *state, const char *initiator_port,
                                uint32_t target_port, uint64_t key) {
    struct reservation_nexus nexus = {initiator_port, target_port};
    int found = reservation_find(state, &nexus);
    if (found < 0) {
        if (state->registrations_count == RESERVATION_REGISTRATIONS_MAX)
            return outcome_illegal(ASC_NO_REGISTRATION_RESOURCES);
        found = (int)state->registrations_count++;
        reservation_registration *one = &state->registrations[found];
        memset(one, 0, sizeof(*one));
        strcpy(one->initiator_port, initiator_port);
        one->target_port = target_port;
    }
    state->registrations[found].key = key;
    return outcome_good();
}

static struct bs_status register_ports(struct change *change, const char *initiator_port) {
    uint64_t key = change->request->action_key;
    struct bs_status outcome =
        set_key(change->state, initiator_port, change->nexus->target_port, key);
    if (!change->request->all_target_ports)
        return outcome;
    for (unsigned i = 0; i < change->ports->count && outcome.status == SAM_GOOD; i++)
        outcome = set_key(change->state, initiator_port, change->ports->ids[i], key);
    return outcome;
}

// With ALL_TG_PT as if the command had come by every port.
static void unregister(struct change *change) {
    reservation_state *state = change->state;
    for (int i = (int)state->registrations_count - 1; i >= 0; i--) {
        const reservation_registration *one = &state->registrations[i];
        if (strcmp(one->initiator_port, change->nexus->initiator_port) != 0)
            continue;
        if (one->target_port == change->nexus->target_port || change->request->all_target_ports)
            reservation_remove(state, i);
    }
}

static struct bs_status register_named(struct change *change) {
    const uint8_t *at = change->request->transport_ids;
    size_t left = change->request->transport_ids_length;
    while (left > 0) {
        char name[RESERVATION_NAME_SIZE];
        size_t used = reservation_transport_id_parse(at, left, name);
        if (used == 0)
            return outcome_illegal(ASC_INVALID_FIELD_IN_PARAMETERS);
        struct bs_status outcome = register_ports(change, name);
        if (outcome.status != SAM_GOOD)
            return outcome;
        at += used;
        left -= used;
    }
    return outcome_good();
}

static struct bs_status do_register(struct change *change, bool ignore_existing) {
    const struct reservation_request *request = change->request;
    if (!ignore_existing) {
        uint64_t expected = change->own < 0 ? 0 : change->state->registrations[change->own].key;
        if (request->key != expected)
            return outcome_conflict();
    }
    if (request->named_initiators && (change->own >= 0 || request->action_key == 0))
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    if (change->own < 0 && request->action_key == 0) {
        change->counts = false;
        return outcome_good();
    }
    change->state->has_aptpl = true;
    change->state->aptpl = request->aptpl;
    if (request->action_key == 0) {
        unregister(change);
        return outcome_good();
    }
    struct bs_status outcome = register_ports(change, change->nexus->initiator_port);
    if (outcome.status == SAM_GOOD && request->named_initiators)
        outcome = register_named(change);
    return outcome;
}

static struct bs_status do_reserve(struct change *change) {
    reservation_state *state = change->state;
    const struct reservation_request *request = change->request;
    change->counts = false;
    if (request->scope != 0 || !reservation_type_valid(request->type))
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    if (state->type == PR_NONE) {
        hold(state, change->own, request->type);
        return outcome_good();
    }
    bool same = reservation_holds(state, change->own) && state->type == request->type;
    return same ? outcome_good() : outcome_conflict();
}

static struct bs_status do_release(struct change *change) {
    reservation_state *state = change->state;
    change->counts = false;
    if (!reservation_holds(state, change->own))
        return outcome_good();
    if (change->request->scope != 0 || change->request->type != state->type)
        return outcome_illegal(ASC_INVALID_RELEASE);
    reservation_end(state);
    return outcome_good();
}

static struct bs_status do_clear(struct change *change) {
    reservation_end(change->state);
    change->state->registrations_count = 0;
    return outcome_good();
}

// Removes the registrations with the key (`any`: all); `keep` is a nexus that stays, or NULL.
static unsigned remove_keys(reservation_state *state, uint64_t key, bool any,
                            const struct reservation_nexus *keep) {
    unsigned removed = 0;
    for (int i = (int)state->registrations_count - 1; i >= 0; i--) {
        const reservation_registration *one = &state->registrations[i];
        if (!any && one->key != key)
            continue;
        if (keep != NULL && reservation_same_nexus(one->initiator_port, one->target_port, keep))
            continue;
        reservation_remove(state, i);
        removed++;
    }
    return removed;
}

// Whether the service action's key means the reservation, and not registrations alone.
static bool preempts_holder(const reservation_state *state, uint64_t key) {
    if (state->type == PR_NONE)
        return false;
    if (reservation_type_all(state->type))
        return key == 0;
    for (unsigned i = 0; i < state->registrations_count; i++) {
        if (state->registrations[i].holder)
            return state->registrations[i].key == key;
    }
    return false;
}

static struct bs_status do_preempt(struct change *change) {
    reservation_state *state = change->state;
    uint64_t key = change->request->action_key;
    if (!preempts_holder(state, key)) {
        if (key == 0)
            return outcome_illegal(ASC_INVALID_FIELD_IN_PARAMETERS);
        return remove_keys(state, key, false, NULL) > 0 ? outcome_good() : outcome_conflict();
    }
    if (change->request->scope != 0 || !reservation_type_valid(change->request->type))
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    bool everybody = reservation_type_all(state->type);
    (void)remove_keys(state, key, everybody, change->nexus);
    hold(state, reservation_find(state, change->nexus), change->request->type);
    return outcome_good();
}

static bool known_port(const struct change *change, uint32_t port) {
    if (port == change->nexus->target_port)
        return true;
    for (unsigned i = 0; i < change->ports->count; i++) {
        if (change->ports->ids[i] == port)
            return true;
    }
    return false;
}

static struct bs_status do_move(struct change *change) {
    reservation_state *state = change->state;
    const struct reservation_request *request = change->request;
    if (state->type == PR_NONE)
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    if (reservation_type_all(state->type) || !reservation_holds(state, change->own))
        return outcome_conflict();
    char name[RESERVATION_NAME_SIZE];
    size_t used =
        reservation_transport_id_parse(request->transport_ids, request->transport_ids_length, name);
    if (request->action_key == 0 || used != request->transport_ids_length ||
        !known_port(change, request->move_port) ||
        reservation_same_nexus(name, request->move_port, change->nexus))
        return outcome_illegal(ASC_INVALID_FIELD_IN_PARAMETERS);
    uint32_t type = state->type;
    // First, so that a full table has room for the new one.
    if (request->unregister)
        reservation_remove(state, change->own);
    struct bs_status outcome = set_key(state, name, request->move_port, request->action_key);
    if (outcome.status != SAM_GOOD)
        return outcome;
    struct reservation_nexus to = {name, request->move_port};
    hold(state, reservation_find(state, &to), type);
    state->has_aptpl = true;
    state->aptpl = request->aptpl;
    return outcome_good();
}

static struct bs_status apply(struct change *change) {
    const struct reservation_request *request = change->request;
    if (request->action == PR_REGISTER || request->action == PR_REGISTER_AND_IGNORE)
        return do_register(change, request->action == PR_REGISTER_AND_IGNORE);
    // All others are for registrants that know their key.
    if (change->own < 0 || change->state->registrations[change->own].key != request->key)
        return outcome_conflict();
    switch (request->action) {
    case PR_RESERVE:
        return do_reserve(change);
    case PR_RELEASE:
        return do_release(change);
    case PR_CLEAR:
        return do_clear(change);
    case PR_PREEMPT:
    case PR_PREEMPT_AND_ABORT:
        return do_preempt(change);
    case PR_REGISTER_AND_MOVE:
        return do_move(change);
    default:
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    }
}

struct bs_status reservation_out(reservation_state *state, const struct reservation_nexus *nexus,
                                 const struct reservation_request *request,
                                 const struct reservation_ports *ports) {
    // SPC-2: while RESERVE holds the unit, nobody may use persistent reservations.
    if (state->has_reserved_by && state->reserved_by[0] != '\0')
        return outcome_conflict();
    reservation_state *copy = malloc(sizeof(*copy));
    if (copy == NULL)
        return (struct bs_status){.status = SAM_BUSY};
    memcpy(copy, state, sizeof(*copy));
    struct change change = {copy, nexus, request, ports, reservation_find(state, nexus), true};
    struct bs_status outcome = apply(&change);
    if (outcome.status == SAM_GOOD) {
        if (change.counts)
            copy->generation++;
        copy->has_change = true;
        copy->change.action = request->action;
        strcpy(copy->change.initiator_port, nexus->initiator_port);
        copy->change.target_port = nexus->target_port;
        memcpy(state, copy, sizeof(*state));
    }
    free(copy);
    return outcome;
}
