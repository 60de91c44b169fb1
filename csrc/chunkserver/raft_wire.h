// SPDX-License-Identifier: BSD-3-Clause
//
// How raft's messages travel between chunkservers: a frame is the request message of
// copygate.RaftService.Step, and holds messages of any groups of two servers; the payloads of all
// entries, in their order, are the RPC's attachment. Pure functions: no clock, socket or
// allocation. Little-endian, written and read field by field.
//
//   header    magic, version, CRC-32C of the rest, lengths, count           32 bytes
//   message   type, flags, group, from, to, term; then its type's fields    64 bytes a HEARTBEAT
//   entry     (APPEND, message.count of them) term, type, lengths; meta; CRC-32C of each block
//
// cg_raft_frame_open looks at every byte before it returns 0, so that nothing of a bad frame is
// ever acted on. What the numbers mean is checked by the raft core and by whoever applies entries.
#ifndef CG_CHUNKSERVER_RAFT_WIRE_H
#define CG_CHUNKSERVER_RAFT_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chunkserver/wal.h"
#include "raft/raft.h"

#define CG_RAFT_FRAME_VERSION      1U
#define CG_RAFT_FRAME_HEADER       32U
#define CG_RAFT_FRAME_MESSAGES_MAX 16384U
#define CG_RAFT_FRAME_LENGTH_MAX   (1U << 20) // bytes, all but payloads: what cg_server takes
#define CG_RAFT_FRAME_PAYLOAD_MAX  (8U << 20)

// What no message (without its entries) and no entry (without its payload) exceeds.
#define CG_RAFT_MESSAGE_ENCODED_MAX 72U
#define CG_RAFT_ENTRY_HEADER        24U
#define CG_RAFT_ENTRY_ENCODED_MAX                                                                  \
    (CG_RAFT_ENTRY_HEADER + CG_WAL_META_MAX + 4U * CG_WAL_PAYLOAD_BLOCKS_MAX)

// An entry as it travels; its index follows from its message.
struct cg_raft_wire_entry {
    uint64_t term;
    uint32_t type;           // CG_ENTRY_*; not 0
    uint32_t meta_length;    // bytes, at most CG_WAL_META_MAX
    uint32_t payload_length; // bytes, a multiple of CG_WAL_BLOCK, at most CG_WAL_PAYLOAD_MAX
    const void *meta;        // read from a frame: in its bytes, at any alignment
    // Written: payload_length / CG_WAL_BLOCK values. Read: NULL, see cg_raft_entry_crcs.
    const uint32_t *block_crcs;
    const uint8_t *encoded_crcs; // read only
    uint32_t payload_offset;     // read only: bytes into the attachment
};

// ---- Writing: messages one after the other, each APPEND followed by its entries

// Bytes that the calls below write.
uint32_t cg_raft_message_size(const struct cg_raft_message *message);
uint32_t cg_raft_entry_size(const struct cg_raft_wire_entry *entry);

// `message` is one that the core hands out; message->entries is not looked at.
void cg_raft_message_encode(uint64_t group, const struct cg_raft_message *message, uint8_t *out);
void cg_raft_entry_encode(const struct cg_raft_wire_entry *entry, uint8_t *out);

// Completes a frame of `length` bytes whose messages stand behind CG_RAFT_FRAME_HEADER.
void cg_raft_frame_seal(uint8_t *frame, uint32_t length, uint32_t payload_length,
                        uint32_t message_count);

// ---- Reading

struct cg_raft_frame {
    const uint8_t *bytes;
    uint32_t length;
    uint32_t payload_length;
    uint32_t message_count;
    uint32_t at;            // of the next message or entry
    uint32_t payload_at;    // of the next entry's payload
    uint32_t messages_left; // messages not read yet
    uint32_t entries_left;  // of the message read last
};

// Checks the frame in bytes[0, length) that came with an attachment of `attachment_length` bytes.
// 0; -EPROTONOSUPPORT for a version that we do not know; -EBADMSG for anything else that no server
// of this protocol sends, with the reason in *why (a constant text, never NULL on failure).
int cg_raft_frame_open(const uint8_t *bytes, uint32_t length, uint32_t attachment_length,
                       struct cg_raft_frame *out, const char **why);

// The next message of a frame that was opened; false: there is none. Entries that were not read are
// passed over. message->entries is NULL.
bool cg_raft_frame_message(struct cg_raft_frame *frame, uint64_t *group,
                           struct cg_raft_message *out);

// The next entry of that message; false: that was all.
bool cg_raft_frame_entry(struct cg_raft_frame *frame, struct cg_raft_wire_entry *out);

// The CRC-32C of each block of the entry's payload: payload_length / CG_WAL_BLOCK values.
void cg_raft_entry_crcs(const struct cg_raft_wire_entry *entry, uint32_t *out);

// True if `payload` (payload_length bytes) is what the entry's CRCs say.
bool cg_raft_entry_intact(const struct cg_raft_wire_entry *entry, const uint8_t *payload);

#endif
