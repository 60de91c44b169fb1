// SPDX-License-Identifier: GPL-2.0-only
//
// Gateways of one volume without tgtd, IO core and MDS: lun_state*.c between fakes of what is below
// and above. What the core would deliver waits until the test picks it, so that every order of
// events can be had; one seed gives one order.
#ifndef FAKE_GATEWAYS_H
#define FAKE_GATEWAYS_H

#include "frontends/tgt/lun_state.h"

enum { GATEWAYS = 3, SESSIONS = 2, COMMANDS = 8 };

// A command that an initiator waits for.
struct fake_command {
    bool used;
    bool done;
    bool io; // reads or writes: it ends when the test picks it
    int gateway, session;
    struct scsi_cmd cmd;
    uint8_t cdb[16];
    uint8_t data[64];
    uint8_t status; // when done
    uint16_t code;
    struct bs_command *command; // io: what runs
    struct cg_volume *volume;   // io: that it was sent to
    uint64_t began_revision;
};

struct fake_gateway {
    struct bs_lun lun;
    struct scsi_lu lu;
    struct tgt_target target;
    struct tgt_nexus_lu nexus[SESSIONS];
    char name[8];
    unsigned attentions[SESSIONS]; // how many were raised
    uint16_t last_attention[SESSIONS];
};

extern struct fake_gateway fake_gateways[GATEWAYS];
extern struct fake_command fake_commands[COMMANDS];

void fake_begin(uint64_t seed, bool keeps_state);
void fake_end(void);

uint32_t fake_random(uint32_t below);

void fake_start(int gateway, bool standby);
void fake_stop(int gateway);
bool fake_runs(int gateway);
struct lun_state *fake_state(int gateway);

// Sends a command by a session of a gateway; it may end at once. NULL: COMMANDS are outstanding.
struct fake_command *fake_send(int gateway, int session, const uint8_t *cdb, size_t cdb_length,
                               const uint8_t *data, size_t length);
struct fake_command *fake_reserve_out(int gateway, int session, uint8_t action, uint8_t type,
                                      uint64_t key, uint64_t action_key);
struct fake_command *fake_io(int gateway, int session, bool write);
struct fake_command *fake_set_groups(int gateway, int session);
void fake_forget(struct fake_command *command);

// Lets one thing happen that waits, a random one. False: nothing waits.
bool fake_step(void);
// Until nothing waits any more, IO included.
void fake_settle(void);
// Delivers only for one gateway (or, -1, only what is not IO) until nothing of that waits.
void fake_settle_without_io(void);

// The MDS's own.
extern uint64_t fake_epoch;
extern uint64_t fake_revision;
const lun_shared_state *fake_kept(void);

#endif
