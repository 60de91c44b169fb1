// SPDX-License-Identifier: BSD-3-Clause
//
// What the parser (receiver.c) and the scattered reads (receiver_scatter.c) share.
#ifndef CG_RPC_RECEIVER_INTERNAL_H
#define CG_RPC_RECEIVER_INTERNAL_H

#include "rpc/receiver.h"

// Room in the stage behind a head that stays there while its attachment comes in.
#define CG_RECEIVER_ROOM_MIN 1024U

// Decodes the head in `length` bytes at `in`. 1: it is whole; 0: more is needed (*needed bytes, as
// far as can be told); -errno.
int cg_receiver_decode_head(const struct cg_receiver *receiver, const uint8_t *in, uint32_t length,
                            struct cg_receiver_frame *out, uint32_t *needed);

// Makes `target` the place for an attachment of `length` bytes.
void cg_receiver_aim(struct cg_receiver *receiver, const struct cg_receiver_target *target,
                     uint32_t length);

// The next `length` bytes of the attachment are in their place, or are at `from`.
void cg_receiver_skip_target(struct cg_receiver *receiver, size_t length);
void cg_receiver_copy_to_target(struct cg_receiver *receiver, const uint8_t *from, size_t length);

// The frame under way is whole: calls `end`.
int cg_receiver_finish_frame(struct cg_receiver *receiver);

// With attachments that are worth it, only heads are staged; the rest goes straight to its place.
void cg_receiver_note_shape(struct cg_receiver *receiver);

// Takes all whole frames that are staged. 0 or -errno.
int cg_receiver_parse(struct cg_receiver *receiver);

#endif
