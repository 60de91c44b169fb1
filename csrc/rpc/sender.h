// SPDX-License-Identifier: BSD-3-Clause
//
// What waits to be sent on one socket: pieces of a head (encoded by us) and user data (sent from
// where it is), many per system call.
#ifndef CG_RPC_SENDER_H
#define CG_RPC_SENDER_H

#include <stdint.h>
#include <sys/uio.h>

#include "base/list.h"

struct cg_send_item {
    struct cg_list node;
    const uint8_t *head;
    uint32_t head_length;
    uint32_t length; // head and iov together
    uint32_t sent;
    int iovcnt;
    const struct iovec *iov;
};

struct cg_sender {
    struct cg_list queue;
    uint64_t queued_bytes; // not yet taken by the socket
    uint64_t sent_bytes;   // ever
    // The socket has taken the whole item; it is off the queue.
    void (*sent)(struct cg_sender *sender, struct cg_send_item *item);
};

void cg_sender_init(struct cg_sender *sender,
                    void (*sent)(struct cg_sender *sender, struct cg_send_item *item));

// Queues an item; head, head_length, iov, iovcnt and length are set.
void cg_sender_push(struct cg_sender *sender, struct cg_send_item *item);

// Takes an item off the queue: one of which nothing was sent, or when the connection is gone.
void cg_sender_remove(struct cg_sender *sender, struct cg_send_item *item);

enum cg_send_result {
    CG_SEND_DONE = 0,
    CG_SEND_BLOCKED = 1, // wait for EPOLLOUT
};

// Sends as much as the socket takes. Returns a cg_send_result or -errno.
int cg_sender_flush(struct cg_sender *sender, int fd);

#endif
