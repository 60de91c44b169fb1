// SPDX-License-Identifier: BSD-3-Clause
//
// The incremental parser of one connection's incoming frames. Heads (header, meta, message) are
// read into a staging area; attachments go straight to where the owner wants them.
//
// To take several frames with one system call all the same, the owner may guess what comes next:
// the length of each head, and where its attachment will go. The call then scatters over heads and
// destinations. Where a guess proves wrong, the bytes behind it are gathered up and parsed as if
// they had been staged: that costs a copy, never correctness.
//
// No sockets inside but for cg_receiver_read: a test or a fuzzer feeds bytes by cg_receiver_feed.
#ifndef CG_RPC_RECEIVER_H
#define CG_RPC_RECEIVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "rpc/frame.h"

#define CG_RECEIVER_STAGE_SIZE  (64U << 10)
#define CG_RECEIVER_GUESSES_MAX 32U
#define CG_RECEIVER_GUESS_BYTES (256U << 10) // of guessed attachments; the last one may pass it

struct cg_receiver;

struct cg_receiver_frame {
    struct cg_frame_view meta; // strings and message point into the staging area
    const uint8_t *message;
    uint32_t message_length;
    uint32_t attachment_length;
    uint32_t head_length; // header, meta and message
    void *guess; // cookie of the guess at whose place the attachment's bytes are; NULL: none
};

// Where an attachment goes. The array and what it points to stay until the frame ends or is
// discarded.
struct cg_receiver_target {
    const struct iovec *iov; // together at least attachment_length bytes; NULL: thrown away
    int iovcnt;
    bool in_place; // frame->guess's own place, where the bytes may be already
};

struct cg_receiver_guess {
    void *cookie;
    uint32_t head_length;
    uint32_t attachment_length;
    const struct iovec *iov; // exactly attachment_length bytes; NULL when that is 0
    int iovcnt;
};

// Callbacks may close the receiver; it is then left alone but not freed until the call that led to
// the callback has returned.
struct cg_receiver_ops {
    // A frame's head is in. 0 or -errno, which ends the reading.
    int (*begin)(struct cg_receiver *receiver, struct cg_receiver_frame *frame,
                 struct cg_receiver_target *target);
    // Its attachment is in, or was thrown away.
    int (*end)(struct cg_receiver *receiver, struct cg_receiver_frame *frame);
    // Fills in what is expected next, at most `max`; returns how many. NULL: nothing.
    unsigned (*guess)(struct cg_receiver *receiver, struct cg_receiver_guess *out, unsigned max);
    // Does the frame belong to this guess? Changes nothing.
    bool (*confirm)(struct cg_receiver *receiver, const struct cg_receiver_frame *frame,
                    const struct cg_receiver_guess *guess);
    // The connection does not begin with a frame. `bytes` are all so far; called again with more.
    // Returns 0 or -errno. NULL: -EPROTO.
    int (*other_protocol)(struct cg_receiver *receiver, const uint8_t *bytes, uint32_t length);
};

struct cg_receiver {
    const struct cg_receiver_ops *ops;
    uint32_t message_max; // a longer message ends the reading with -EMSGSIZE
    bool closed;
    bool paused; // complete frames stay unparsed; the owner does not read
    bool any_frame;
    bool other_protocol;

    uint8_t *stage;
    uint32_t stage_capacity;
    uint32_t begin; // unparsed bytes are stage[begin, end); while an attachment is received its
    uint32_t end;   // frame's head is the first head_length of them

    bool in_attachment;
    struct cg_receiver_frame frame;
    const struct iovec *target_iov; // what is left of the target; NULL: thrown away
    int target_iovcnt;
    size_t target_offset; // in target_iov[0]
    uint32_t attachment_left;

    uint32_t tail_wish;   // how much to stage when attachments follow heads of this length; 0: all
    unsigned guess_pause; // reads without guessing, after guesses that were wrong
    unsigned guess_penalty;
    uint64_t frames;
    uint64_t bytes;
};

// 0 or -ENOMEM.
int cg_receiver_init(struct cg_receiver *receiver, const struct cg_receiver_ops *ops,
                     uint32_t message_max);
void cg_receiver_free(struct cg_receiver *receiver);

// Forgets everything received, for a new connection.
void cg_receiver_reset(struct cg_receiver *receiver);

// One recvmsg and the callbacks for what it brought. Returns 1 when there may be more, 0 when the
// socket is empty, -ENODATA at the end of the stream, else -errno.
int cg_receiver_read(struct cg_receiver *receiver, int fd);

// Parses frames that were left when reading was paused. 0 or -errno.
int cg_receiver_resume(struct cg_receiver *receiver);

// As if the bytes had come from the socket. 0 or -errno.
int cg_receiver_feed(struct cg_receiver *receiver, const uint8_t *bytes, size_t length);

// The attachment that is being received is thrown away from here on. frame->end is still called.
void cg_receiver_discard(struct cg_receiver *receiver);

#endif
