// SPDX-License-Identifier: BSD-3-Clause
//
// The backend for places where io_uring is refused: epoll, edge-triggered; all file operations go
// to the thread pool.
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/reactor_internal.h"

#define EVENTS_PER_WAIT 128

struct cg_epoll {
    int fd;
    bool coarse; // no epoll_pwait2 (before Linux 5.11): timeouts in milliseconds
    struct epoll_event events[EVENTS_PER_WAIT];
};

static uint64_t token(uint32_t slot, uint32_t generation) {
    return (uint64_t)generation << 32 | slot;
}

int cg_epoll_open(struct cg_reactor *reactor) {
    struct cg_epoll *state = calloc(1, sizeof(*state));
    if (state == NULL) {
        return -ENOMEM;
    }
    state->fd = epoll_create1(EPOLL_CLOEXEC);
    if (state->fd < 0) {
        int rc = -errno;
        free(state);
        return rc;
    }
    reactor->epoll = state;
    return 0;
}

void cg_epoll_close(struct cg_reactor *reactor) {
    struct cg_epoll *state = reactor->epoll;
    close(state->fd);
    free(state);
}

int cg_epoll_descriptor(const struct cg_reactor *reactor) {
    struct cg_epoll *state = reactor->epoll;
    return state->fd;
}

static int wait_coarsely(struct cg_epoll *state, uint64_t timeout_ns) {
    int timeout_ms = -1;
    if (timeout_ns != UINT64_MAX) {
        uint64_t ms = timeout_ns / CG_NS_PER_MS + (timeout_ns % CG_NS_PER_MS != 0);
        timeout_ms = ms > INT32_MAX ? INT32_MAX : (int)ms;
    }
    return epoll_wait(state->fd, state->events, EVENTS_PER_WAIT, timeout_ms);
}

static int wait_finely(struct cg_epoll *state, uint64_t timeout_ns) {
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / CG_NS_PER_S),
                               .tv_nsec = (long)(timeout_ns % CG_NS_PER_S)};
    return epoll_pwait2(state->fd, state->events, EVENTS_PER_WAIT, &timeout, NULL);
}

int cg_epoll_wait(struct cg_reactor *reactor, uint64_t timeout_ns) {
    struct cg_epoll *state = reactor->epoll;
    int count = -1;
    if (timeout_ns == 0 || timeout_ns == UINT64_MAX || state->coarse) {
        count = wait_coarsely(state, timeout_ns);
    } else {
        count = wait_finely(state, timeout_ns);
        if (count < 0 && (errno == ENOSYS || errno == EPERM)) {
            state->coarse = true;
            count = wait_coarsely(state, timeout_ns);
        }
    }
    if (count < 0) {
        return errno == EINTR ? 0 : -errno;
    }
    return count;
}

void cg_epoll_dispatch(struct cg_reactor *reactor, int count) {
    struct cg_epoll *state = reactor->epoll;
    for (int i = 0; i < count; i++) {
        uint64_t data = state->events[i].data.u64;
        cg_reactor_dispatch(reactor, (uint32_t)data, (uint32_t)(data >> 32),
                            state->events[i].events);
    }
}

static int control(struct cg_reactor *reactor, int operation, uint32_t index) {
    struct cg_epoll *state = reactor->epoll;
    struct cg_watch_slot *slot = &reactor->slots[index];
    struct epoll_event event = {
        .events = slot->watch->events | EPOLLET,
        .data.u64 = token(index, slot->generation),
    };
    if (epoll_ctl(state->fd, operation, slot->watch->fd, &event) < 0) {
        return -errno;
    }
    return 0;
}

int cg_epoll_start(struct cg_reactor *reactor, uint32_t slot) {
    return control(reactor, EPOLL_CTL_ADD, slot);
}

int cg_epoll_change(struct cg_reactor *reactor, uint32_t slot) {
    return control(reactor, EPOLL_CTL_MOD, slot);
}

void cg_epoll_end(struct cg_reactor *reactor, int fd) {
    epoll_ctl(reactor->epoll->fd, EPOLL_CTL_DEL, fd, NULL);
}
