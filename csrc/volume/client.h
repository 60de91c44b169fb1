// SPDX-License-Identifier: BSD-3-Clause
//
// Who runs the reactor. One thread at a time, the driver; the others hand their IO over.
//
// OWN_THREAD: the client's thread drives whenever IO was submitted with cg_submit, and when nothing
// has happened for a while. A thread in a blocking call drives when nobody else does, and a driver
// whose own IO is done passes the role to a thread that still waits. So a lone blocking read runs
// on one thread, and of many waiting threads only those are woken whose IO has ended. Completions
// of cg_submit run on the client's thread only: a program may hold locks around a blocking call
// that its completions take.
//
// FOREIGN_LOOP: the owner's thread is the driver.
#ifndef CG_VOLUME_CLIENT_H
#define CG_VOLUME_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/reactor.h"
#include "copygate.h"
#include "volume/mds.h"

struct vol_io;

enum cg_waiter_state {
    CG_WAITER_WAITING = 0,
    CG_WAITER_LEADS, // it is the driver now
    CG_WAITER_DONE,
};

// A thread in a blocking call; lives on its stack.
struct cg_waiter {
    struct cg_list node; // the client's followers
    _Atomic uint32_t state;
    bool asleep; // on the list: wake it
};

struct cg_client {
    struct cg_reactor *reactor;
    enum cg_client_mode mode;
    struct cg_mds mds;
    uint64_t trim_delay_ns;  // from the last trim to giving the segment back
    struct cg_list volumes;  // driver
    struct cg_list openings; // begun with cg_volume_open_start; driver
    struct cg_list servers;  // driver
    uint32_t server_count;

    // IO from other threads, newest first.
    _Alignas(64) _Atomic(struct vol_io *) submitted;
    struct cg_task submit_task;

    // The driver's.
    _Alignas(64) uint64_t async_pending; // begun with cg_submit and not completed
    bool async_may_complete;             // the driver is the one who runs completions
    struct cg_list async_done;           // completed while somebody else drove
    struct cg_waiter *driver;            // the driver's own, if it is in a blocking call

    // Who drives.
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake; // the client's thread
    _Atomic bool driven;
    _Atomic bool stop;
    bool own_turn;              // the client's thread is to drive next
    _Atomic uint32_t followers; // on the list
    struct cg_list follower_list;
    uint64_t blocking_calls; // so that the client's thread sees whether there are any
};

void cg_waiter_init(struct cg_waiter *waiter);

// Readies the line for other threads' IO.
void vol_submit_init(struct cg_client *client);

// Runs `task` on the driver, once somebody drives (cg_client_wait sees to that). Any thread.
void cg_client_post(struct cg_client *client, struct cg_task *task);

// Waits until `waiter` is done, driving meanwhile if nobody else does.
void cg_client_wait(struct cg_client *client, struct cg_waiter *waiter);

// `waiter` is done: its thread goes on. Driver.
void cg_waiter_done(struct cg_client *client, struct cg_waiter *waiter);

// An IO has its result. Driver.
void cg_client_complete(struct cg_client *client, struct cg_io *io);

// The `done` of blocking calls: cg_io.user is the waiter.
void cg_blocking_done(struct cg_io *io);

// Puts a chain of IOs (linked by vol_io.transfer.node.next, first to last) in the driver's line.
void cg_client_submit(struct cg_client *client, struct vol_io *first, struct vol_io *last);

// Starts and ends the client's thread. 0 or -errno.
int cg_client_start_thread(struct cg_client *client);
void cg_client_stop_thread(struct cg_client *client);

#endif
