// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "volume/client.h"
#include "volume/volume.h"

// How long the client's thread stays out of the way after a blocking call.
#define QUIET_NS (20 * CG_NS_PER_MS)

void cg_waiter_init(struct cg_waiter *waiter) {
    cg_list_init(&waiter->node);
    atomic_init(&waiter->state, CG_WAITER_WAITING);
    waiter->asleep = false;
}

static void wake_waiter(struct cg_waiter *waiter) {
    // Only the address counts: the waiter's thread may have left already.
    syscall(SYS_futex, &waiter->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

// ---- Passing the role on. Under client->lock.

// The driver leaves: somebody else who has work takes over, or nobody.
static struct cg_waiter *pass_on(struct cg_client *client) {
    struct cg_list *node = NULL;
    if (client->async_pending == 0 && cg_list_empty(&client->async_done)) {
        node = cg_list_pop_front(&client->follower_list);
    }
    if (node != NULL) {
        struct cg_waiter *next = CG_CONTAINER_OF(node, struct cg_waiter, node);
        atomic_fetch_sub(&client->followers, 1);
        next->asleep = false;
        atomic_store(&next->state, CG_WAITER_LEADS);
        return next;
    }
    atomic_store(&client->driven, false);
    // Pairs with cg_client_submit: it has put IO in the line before it looked whether we drive.
    if (client->async_pending > 0 || !cg_list_empty(&client->async_done) ||
        !cg_list_empty(&client->follower_list) || atomic_load(&client->submitted) != NULL) {
        client->own_turn = true;
        pthread_cond_signal(&client->wake);
    }
    return NULL;
}

// Drives until the waiter is done or work of cg_submit turns up. True if it is done.
static bool drive(struct cg_client *client, struct cg_waiter *waiter) {
    client->async_may_complete = false;
    client->driver = waiter;
    while (atomic_load_explicit(&waiter->state, memory_order_relaxed) != CG_WAITER_DONE &&
           client->async_pending == 0 && cg_list_empty(&client->async_done)) {
        if (cg_reactor_wait(client->reactor, UINT64_MAX) < 0) {
            break; // the client's thread will see it, too
        }
    }
    client->driver = NULL;
    pthread_mutex_lock(&client->lock);
    bool done = atomic_load_explicit(&waiter->state, memory_order_relaxed) == CG_WAITER_DONE;
    if (!done) {
        atomic_store(&waiter->state, CG_WAITER_WAITING);
        waiter->asleep = true;
        cg_list_push_back(&client->follower_list, &waiter->node);
        atomic_fetch_add(&client->followers, 1);
    }
    struct cg_waiter *next = pass_on(client);
    pthread_mutex_unlock(&client->lock);
    if (next != NULL && next != waiter) {
        wake_waiter(next);
    }
    return done;
}

// Becomes the driver or lines up. True: drives.
static bool enter(struct cg_client *client, struct cg_waiter *waiter) {
    bool drives = false;
    pthread_mutex_lock(&client->lock);
    client->blocking_calls++;
    if (atomic_load_explicit(&waiter->state, memory_order_relaxed) == CG_WAITER_WAITING) {
        if (!atomic_load(&client->driven)) {
            atomic_store(&client->driven, true);
            drives = true;
        } else {
            waiter->asleep = true;
            cg_list_push_back(&client->follower_list, &waiter->node);
            atomic_fetch_add(&client->followers, 1);
        }
    }
    pthread_mutex_unlock(&client->lock);
    return drives;
}

void cg_client_wait(struct cg_client *client, struct cg_waiter *waiter) {
    if (client->mode == CG_CLIENT_FOREIGN_LOOP) {
        while (atomic_load(&waiter->state) != CG_WAITER_DONE) {
            cg_reactor_wait(client->reactor, UINT64_MAX);
        }
        return;
    }
    bool drives = enter(client, waiter);
    for (;;) {
        if (drives && drive(client, waiter)) {
            return;
        }
        uint32_t state = atomic_load_explicit(&waiter->state, memory_order_acquire);
        if (state == CG_WAITER_DONE) {
            return;
        }
        drives = state == CG_WAITER_LEADS;
        if (!drives) {
            syscall(SYS_futex, &waiter->state, FUTEX_WAIT_PRIVATE, CG_WAITER_WAITING, NULL, NULL,
                    0);
        }
    }
}

void cg_waiter_done(struct cg_client *client, struct cg_waiter *waiter) {
    if (client->mode == CG_CLIENT_FOREIGN_LOOP || waiter == client->driver) {
        atomic_store_explicit(&waiter->state, CG_WAITER_DONE, memory_order_relaxed);
        return;
    }
    pthread_mutex_lock(&client->lock);
    bool asleep = waiter->asleep;
    if (asleep) {
        waiter->asleep = false;
        cg_list_remove(&waiter->node);
        atomic_fetch_sub(&client->followers, 1);
    }
    // From here on the waiter may be gone.
    atomic_store_explicit(&waiter->state, CG_WAITER_DONE, memory_order_release);
    pthread_mutex_unlock(&client->lock);
    if (asleep) {
        wake_waiter(waiter);
    }
}

// ---- The client's thread

static void deliver(struct cg_client *client, struct cg_io *io) {
    struct cg_volume *volume = vol_io_of(io)->transfer.volume;
    client->async_pending--;
    io->done(io);
    vol_io_delivered(volume);
}

static void run_async_done(struct cg_client *client) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&client->async_done)) != NULL) {
        struct vol_transfer *transfer = CG_CONTAINER_OF(node, struct vol_transfer, node);
        struct cg_io *io = vol_io_public(CG_CONTAINER_OF(transfer, struct vol_io, transfer));
        deliver(client, io);
    }
}

static bool own_thread_leaves(struct cg_client *client) {
    return atomic_load_explicit(&client->stop, memory_order_relaxed) ||
           (client->async_pending == 0 &&
            atomic_load_explicit(&client->followers, memory_order_relaxed) > 0);
}

static void own_drive(struct cg_client *client) {
    client->async_may_complete = true;
    run_async_done(client);
    while (!own_thread_leaves(client)) {
        cg_reactor_wait(client->reactor, UINT64_MAX);
    }
}

// Waits for its turn: somebody asked, or no blocking call came for a while. Under the lock.
static void await_turn(struct cg_client *client) {
    uint64_t calls = client->blocking_calls;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)QUIET_NS;
    if (until.tv_nsec >= (long)CG_NS_PER_S) {
        until.tv_nsec -= (long)CG_NS_PER_S;
        until.tv_sec++;
    }
    int error = 0;
    while (!client->own_turn && !atomic_load(&client->stop) && error == 0) {
        error = pthread_cond_timedwait(&client->wake, &client->lock, &until);
    }
    if (error == ETIMEDOUT && calls == client->blocking_calls) {
        client->own_turn = true;
    }
}

static void *own_thread(void *argument) {
    struct cg_client *client = argument;
    pthread_mutex_lock(&client->lock);
    client->own_turn = true;
    while (!atomic_load(&client->stop)) {
        if (!client->own_turn) {
            await_turn(client);
        }
        if (!client->own_turn || atomic_load(&client->driven)) {
            client->own_turn = false; // a driver that leaves work behind asks again
            continue;
        }
        client->own_turn = false;
        atomic_store(&client->driven, true);
        pthread_mutex_unlock(&client->lock);
        own_drive(client);
        pthread_mutex_lock(&client->lock);
        struct cg_waiter *next = pass_on(client);
        if (next != NULL) {
            wake_waiter(next);
        }
    }
    pthread_mutex_unlock(&client->lock);
    return NULL;
}

int cg_client_start_thread(struct cg_client *client) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    // The host program's signals are not ours to take.
    sigset_t all;
    sigset_t old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&client->thread, NULL, own_thread, client);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error != 0) {
        pthread_cond_destroy(&client->wake);
        pthread_mutex_destroy(&client->lock);
    }
    return -error;
}

static void do_nothing(struct cg_task *task) {
    (void)task;
}

void cg_client_stop_thread(struct cg_client *client) {
    struct cg_task task = {.run = do_nothing};
    atomic_store(&client->stop, true);
    cg_reactor_post(client->reactor, &task);
    pthread_mutex_lock(&client->lock);
    pthread_cond_signal(&client->wake);
    pthread_mutex_unlock(&client->lock);
    pthread_join(client->thread, NULL);
    cg_reactor_progress(client->reactor); // in case the task was not run
    pthread_cond_destroy(&client->wake);
    pthread_mutex_destroy(&client->lock);
}

// ---- Handing IO over

void cg_client_post(struct cg_client *client, struct cg_task *task) {
    cg_reactor_post(client->reactor, task);
}

void cg_client_submit(struct cg_client *client, struct vol_io *first, struct vol_io *last) {
    // The line is newest first: the chain is linked from its last to its first.
    struct vol_io *old = atomic_load_explicit(&client->submitted, memory_order_relaxed);
    do {
        first->transfer.node.next = old != NULL ? &old->transfer.node : NULL;
    } while (!atomic_compare_exchange_weak(&client->submitted, &old, last));
    if (old == NULL) {
        cg_reactor_post(client->reactor, &client->submit_task);
    }
}

void cg_client_complete(struct cg_client *client, struct cg_io *io) {
    if (io->done == cg_blocking_done) {
        struct cg_volume *volume = vol_io_of(io)->transfer.volume;
        io->done(io);
        vol_io_delivered(volume);
    } else if (client->async_may_complete) {
        deliver(client, io);
    } else {
        cg_list_push_back(&client->async_done, &vol_io_of(io)->transfer.node);
    }
}
