// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/epoch_raise.h"

#include <stdlib.h>

#include "chunkserver/service_internal.h"

#define LOOK_INTERVAL_NS (4 * CG_NS_PER_MS)

struct epoch_raise {
    struct cg_store *store;
    struct cg_reactor *reactor;
    uint64_t file_id;
    uint64_t epoch;
    void (*done)(void *user, cg_status status);
    void *user;
    uint32_t proposals; // under way
    cg_status status;   // of the last one that failed
    uint64_t deadline_ns;
    struct cg_timer timer;
};

// A replica that is to join and has no state yet knows of no configuration. It is no voter before
// it knows one (raft/membership.c), and gets the epoch with the log; its copying may take hours.
static bool is_joining(struct cg_copyset *copyset) {
    struct cg_copyset_log *log = cg_copyset_raft(copyset);
    struct cg_copyset_log_status status;
    if (log == NULL) {
        return false;
    }
    cg_copyset_log_status(log, &status);
    return status.config.count == 0;
}

bool cg_epoch_any(struct cg_store *store) {
    for (uint32_t i = 0; i < cg_store_copyset_count(store); i++) {
        if (!is_joining(cg_store_copyset_at(store, i))) {
            return true;
        }
    }
    return false;
}

// SUCCESS, EPOCH_TOO_OLD, or FAILURE_UNKNOWN while it is not everywhere.
static cg_status look(const struct epoch_raise *raise) {
    cg_status status = CG_STATUS(SUCCESS);
    for (uint32_t i = 0; i < cg_store_copyset_count(raise->store); i++) {
        struct cg_copyset *copyset = cg_store_copyset_at(raise->store, i);
        uint64_t known = cg_copyset_epoch(copyset, raise->file_id);
        if (known > raise->epoch) {
            return CG_STATUS(EPOCH_TOO_OLD);
        }
        if (known < raise->epoch && !is_joining(copyset)) {
            status = CG_STATUS(FAILURE_UNKNOWN);
        }
    }
    return status;
}

// Ends it if there is nothing to wait for.
static void settle(struct epoch_raise *raise) {
    if (raise->proposals > 0) {
        return;
    }
    cg_status status = raise->status;
    uint64_t now = cg_reactor_now(raise->reactor);
    if (status == CG_STATUS(SUCCESS)) {
        status = look(raise);
        if (status == CG_STATUS(FAILURE_UNKNOWN) && now < raise->deadline_ns &&
            cg_timer_arm(raise->reactor, &raise->timer, now + LOOK_INTERVAL_NS) == 0) {
            return;
        }
    }
    raise->done(raise->user, status);
    free(raise);
}

static void look_again(struct cg_timer *timer) {
    settle(CG_CONTAINER_OF(timer, struct epoch_raise, timer));
}

static void proposal_done(void *user, const struct cg_mutation_result *result) {
    struct epoch_raise *raise = user;
    // Redirected: somebody else leads now, and may raise it.
    if (result->status != CG_STATUS(SUCCESS) && result->status != CG_STATUS(REDIRECTED)) {
        raise->status = result->status;
    }
    raise->proposals--;
    settle(raise);
}

void cg_epoch_raise_all(struct cg_store *store, struct cg_reactor *reactor, uint64_t file_id,
                        uint64_t epoch, void (*done)(void *user, cg_status status), void *user) {
    struct epoch_raise *raise = malloc(sizeof(*raise));
    if (raise == NULL) {
        done(user, CG_STATUS(OVERLOAD));
        return;
    }
    *raise = (struct epoch_raise){
        .store = store,
        .reactor = reactor,
        .file_id = file_id,
        .epoch = epoch,
        .done = done,
        .user = user,
        .proposals = 1, // one more than there are, so that it does not end inside the loop
        .status = CG_STATUS(SUCCESS),
        .deadline_ns = cg_reactor_now(reactor) + CG_EPOCH_WAIT_NS,
        .timer.fire = look_again,
    };
    for (uint32_t i = 0; i < cg_store_copyset_count(store); i++) {
        struct cg_copyset *copyset = cg_store_copyset_at(store, i);
        if (cg_copyset_leads(copyset) && cg_copyset_epoch(copyset, file_id) < epoch) {
            struct cg_mutation mutation = {
                .kind = CG_MUTATE_EPOCH,
                .copyset = copyset,
                .file_id = file_id,
                .epoch = epoch,
                .done = proposal_done,
                .user = raise,
            };
            raise->proposals++;
            cg_store_mutate(store, &mutation);
        }
    }
    raise->proposals--;
    settle(raise);
}
