// SPDX-License-Identifier: BSD-3-Clause
//
// A leader feeds its peers [3.5], pipelined and with flow control [10.2.1]: where a peer's log
// agrees is found by single messages (PROBE), then messages follow one another within a window of
// messages and bytes (REPLICATE); who needs what is gone gets a snapshot.
#include <assert.h>
#include <errno.h>

#include "raft/raft_internal.h"

static void clear_inflight(struct raft_peer *peer) {
    peer->inflight_first = 0;
    peer->inflight_count = 0;
    peer->inflight_bytes = 0;
}

void raft_start_probe(struct raft_peer *peer, uint64_t next) {
    assert(next > peer->match);
    peer->state = RAFT_PROBE;
    peer->next = next;
    peer->probing = false;
    clear_inflight(peer);
}

// At the beginning of a term nothing is known of the peer [3.3, figure: nextIndex, matchIndex].
void raft_reset_peer(struct cg_raft *raft, struct raft_peer *peer) {
    peer->match = 0;
    raft_start_probe(peer, raft->log.last_index + 1);
    peer->starved = false;
    peer->ask_snapshot = false;
    peer->heartbeat_due = false;
    peer->quiesce_due = false;
    peer->timeout_due = false;
    peer->heard_ns = raft->now_ns;
    peer->acked_round = 0;
    peer->acked_sent_ns = 0;
    peer->sent_round = 0;
}

static void note_inflight(struct raft_peer *peer, uint64_t last, uint64_t bytes) {
    assert(peer->inflight_count < CG_RAFT_INFLIGHT_MAX);
    uint32_t at = (peer->inflight_first + peer->inflight_count++) % CG_RAFT_INFLIGHT_MAX;
    peer->inflight[at] = (struct raft_inflight){.last = last, .bytes = bytes};
    peer->inflight_bytes += bytes;
}

static void free_inflight(struct raft_peer *peer, uint64_t match) {
    while (peer->inflight_count > 0 && peer->inflight[peer->inflight_first].last <= match) {
        peer->inflight_bytes -= peer->inflight[peer->inflight_first].bytes;
        peer->inflight_first = (peer->inflight_first + 1) % CG_RAFT_INFLIGHT_MAX;
        peer->inflight_count--;
    }
}

static bool window_open(const struct cg_raft *raft, const struct raft_peer *peer) {
    if (peer->state == RAFT_PROBE) {
        return !peer->probing;
    }
    return peer->state == RAFT_REPLICATE && peer->next <= raft->log.last_index &&
           peer->inflight_count < raft->options.inflight_messages_max &&
           peer->inflight_bytes < raft->options.inflight_bytes_max;
}

static uint32_t fit(const struct cg_raft *raft, const struct raft_peer *peer, uint64_t *bytes) {
    *bytes = 0;
    uint64_t last = raft->log.last_index;
    if (peer->next > last) {
        return 0;
    }
    if (last - peer->next >= raft->options.message_entries_max) {
        last = peer->next + raft->options.message_entries_max - 1;
    }
    uint32_t count = raft->options.fit(raft->options.context, peer->next, last,
                                       raft->options.message_bytes_max, bytes);
    assert(count <= last - peer->next + 1);
    return count;
}

static void ask_snapshot(struct raft_peer *peer) {
    peer->state = RAFT_SNAPSHOT;
    peer->ask_snapshot = true;
}

// The next message for `peer`, if there is one to send now.
bool raft_fill_append(struct cg_raft *raft, struct raft_peer *peer,
                      struct cg_raft_message *message) {
    if (peer->starved || !window_open(raft, peer)) {
        return false;
    }
    if (peer->next <= raft->log.base_index) {
        // It may have them all the same, and not know that they are ours: where the log begins is
        // asked about first.
        raft_start_probe(peer, raft->log.base_index + 1);
    }
    uint64_t bytes;
    uint32_t count = fit(raft, peer, &bytes);
    if (count == 0 && peer->next <= raft->log.last_index) {
        peer->starved = true;
        return false;
    }
    message->type = CG_RAFT_APPEND;
    message->prev_index = peer->next - 1;
    message->prev_term = log_terms_at(&raft->log, peer->next - 1);
    message->commit = raft->commit_index;
    message->count = count;
    peer->sent_round = raft->round;
    if (peer->state == RAFT_PROBE) {
        peer->probing = true;
    } else {
        note_inflight(peer, peer->next + count - 1, bytes);
        peer->next += count;
    }
    return true;
}

void cg_raft_peer_ready(struct cg_raft *raft, uint64_t id) {
    struct raft_peer *peer = raft_peer(raft, id);
    if (peer != NULL) {
        peer->starved = false;
    }
}

// The peer has told that it has all up to `match`, durably.
void raft_matched(struct cg_raft *raft, struct raft_peer *peer, uint64_t match) {
    if (peer->state == RAFT_SNAPSHOT && match < raft->log.base_index) {
        return;
    }
    if (match > peer->match) { // answers may be late or doubled: match never falls within a term
        peer->match = match;
    }
    if (peer->state == RAFT_PROBE && peer->match < raft->log.base_index &&
        peer->next > raft->log.base_index) {
        // After a restart it knows of less than it has: the probe finds out, where going back to
        // what it knows would end in a snapshot.
        raft_advance_commit(raft);
        return;
    }
    if (peer->state != RAFT_REPLICATE) {
        peer->state = RAFT_REPLICATE;
        peer->next = peer->match + 1;
        peer->ask_snapshot = false;
        clear_inflight(peer);
    } else if (peer->next <= peer->match) {
        peer->next = peer->match + 1;
    }
    free_inflight(peer, peer->match);
    raft_advance_commit(raft);
    raft_advance_transfer(raft);
}

// The logs disagree before `next`: goes back by terms, not by entries [3.5, end].
static void refused(struct cg_raft *raft, struct raft_peer *peer,
                    const struct cg_raft_message *message) {
    if (message->prev_index <= peer->match || peer->state == RAFT_SNAPSHOT ||
        (peer->state == RAFT_PROBE && message->prev_index != peer->next - 1)) {
        return; // an answer to something older
    }
    uint64_t next = log_terms_not_above(&raft->log, message->hint_index, message->hint_term) + 1;
    if (message->hint_index < raft->log.base_index) {
        next = message->hint_index + 1; // further back than this log goes
    }
    raft_start_probe(peer, next > peer->match ? next : peer->match + 1);
    if (peer->next <= raft->log.base_index) {
        ask_snapshot(peer);
    }
}

int raft_receive_append_reply(struct cg_raft *raft, const struct cg_raft_message *message) {
    struct raft_peer *peer = raft_peer(raft, message->from);
    if (raft->role != CG_RAFT_LEADER || peer == NULL) {
        return 0;
    }
    if (!message->rejected && message->match > raft->log.last_index) {
        return -EBADMSG;
    }
    peer->heard_ns = raft->now_ns;
    if (message->rejected) {
        refused(raft, peer, message);
    } else {
        raft_matched(raft, peer, message->match);
    }
    return 0;
}

bool cg_raft_progress(const struct cg_raft *raft, uint64_t id, struct cg_raft_progress *out) {
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const struct raft_peer *peer = &raft->peer[i];
        if (peer->id == id) {
            *out = (struct cg_raft_progress){
                .match = peer->match,
                .next = peer->next,
                .heard_ns = peer->heard_ns,
                .learner = peer->learner,
                .snapshot = peer->state == RAFT_SNAPSHOT,
            };
            return true;
        }
    }
    return false;
}
