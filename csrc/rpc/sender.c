// SPDX-License-Identifier: BSD-3-Clause
#include "rpc/sender.h"

#include <errno.h>
#include <sys/socket.h>

// The kernel's own limit is 1024.
#define IOV_AT_ONCE 1024

void cg_sender_init(struct cg_sender *sender,
                    void (*sent)(struct cg_sender *sender, struct cg_send_item *item)) {
    *sender = (struct cg_sender){.sent = sent};
    cg_list_init(&sender->queue);
}

void cg_sender_push(struct cg_sender *sender, struct cg_send_item *item) {
    item->sent = 0;
    sender->queued_bytes += item->length;
    cg_list_push_back(&sender->queue, &item->node);
}

void cg_sender_remove(struct cg_sender *sender, struct cg_send_item *item) {
    sender->queued_bytes -= item->length - item->sent;
    cg_list_remove(&item->node);
}

// Adds what is left of `item` to iov[*count ...]; false when there was not room for all of it.
static bool gather(const struct cg_send_item *item, struct iovec *iov, int *count, size_t *bytes) {
    uint32_t skip = item->sent;
    if (skip < item->head_length) {
        if (*count == IOV_AT_ONCE) {
            return false;
        }
        iov[*count].iov_base = (void *)(uintptr_t)(item->head + skip);
        iov[*count].iov_len = item->head_length - skip;
        *bytes += item->head_length - skip;
        (*count)++;
        skip = 0;
    } else {
        skip -= item->head_length;
    }
    for (int i = 0; i < item->iovcnt; i++) {
        size_t length = item->iov[i].iov_len;
        if (length <= skip) {
            skip -= (uint32_t)length;
            continue;
        }
        if (*count == IOV_AT_ONCE) {
            return false;
        }
        iov[*count].iov_base = (char *)item->iov[i].iov_base + skip;
        iov[*count].iov_len = length - skip;
        *bytes += length - skip;
        (*count)++;
        skip = 0;
    }
    return true;
}

static void account(struct cg_sender *sender, size_t taken) {
    sender->queued_bytes -= taken;
    sender->sent_bytes += taken;
    while (taken > 0) {
        struct cg_send_item *item = CG_CONTAINER_OF(sender->queue.next, struct cg_send_item, node);
        size_t left = item->length - item->sent;
        if (taken < left) {
            item->sent += (uint32_t)taken;
            return;
        }
        taken -= left;
        item->sent = item->length;
        cg_list_remove(&item->node);
        sender->sent(sender, item);
    }
}

int cg_sender_flush(struct cg_sender *sender, int fd) {
    struct iovec iov[IOV_AT_ONCE];
    while (!cg_list_empty(&sender->queue)) {
        int count = 0;
        size_t bytes = 0;
        CG_LIST_FOREACH (node, &sender->queue) {
            if (!gather(CG_CONTAINER_OF(node, struct cg_send_item, node), iov, &count, &bytes)) {
                break;
            }
        }
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)count};
        ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno == EAGAIN || errno == ENOBUFS ? CG_SEND_BLOCKED : -errno;
        }
        account(sender, (size_t)n);
        if ((size_t)n < bytes) {
            return CG_SEND_BLOCKED;
        }
    }
    return CG_SEND_DONE;
}
