// SPDX-License-Identifier: GPL-2.0-only
//
// The inside of the backing store module `copygate` for tgtd. What becomes of a SCSI command:
//
//   dispatch.c   finds the opcode's entry, asks the extensions and lun.c whether it may run now
//   opcodes.c    the one table of opcodes; REPORT SUPPORTED OPERATION CODES is made from it
//   command.c    a command that takes IO: its slot, deadline, completion; the admission limit
//   read_write.c, same.c, unmap.c, compare.c, verify.c, orwrite.c, lba_status.c, ...
//                one file for each kind of command
//   status.c     errors of the IO core as SCSI status and sense (pure)
//   cdb.c        fields and ranges of command descriptor blocks (pure)
//
// and of a LUN:
//
//   module.c     registers the store with tgtd
//   canary.c     refuses a tgtd that it does not know
//   options.c    bsopts (pure)
//   lun.c        create, open, resize, close
//   client.c     the IO core's client, one for all LUNs of the process that can share it
//
// Reservations and target port groups are extensions (struct bs_extension), listed in extensions.c.
// Everything runs on tgtd's one thread.
#ifndef CG_FRONTENDS_TGT_MODULE_H
#define CG_FRONTENDS_TGT_MODULE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/list.h"
#include "copygate.h"
#include "frontends/tgt/options.h"
#include "frontends/tgt/sense.h"
#include "frontends/tgt/tgt_abi.h"

#define BS_COMMANDS_MAX   256U // of a LUN, with IO under way; more get TASK SET FULL
#define BS_EXTENSIONS_MAX 4U
#define BS_TRANSFER_MAX   (32U << 20) // bytes: MAXIMUM TRANSFER LENGTH

struct bs_client;
struct bs_command;
struct bs_lun;

// ---- Opcodes

enum {
    BS_NO_ACTION = 0xffff, // the opcode has no service action

    // Flags. Needs the volume open here; it is NOT READY otherwise.
    BS_OP_MEDIUM = 1U << 0,
    // Reads user data or its allocation; changes user data. For reservations and write protection.
    BS_OP_READS = 1U << 1,
    BS_OP_WRITES = 1U << 2,
};

struct bs_opcode {
    uint8_t opcode;
    uint8_t length;  // of the CDB
    uint16_t action; // service action (CDB byte 1, bits 0 to 4), or BS_NO_ACTION
    uint16_t flags;
    // Runs the command. Returns a SAM status, sense built and residuals set; or, after
    // bs_command_begin, BS_PENDING, and bs_command_end comes later.
    int (*perform)(struct bs_lun *lun, struct scsi_cmd *cmd);
    // CDB USAGE DATA from byte 1 on: the bits that are looked at. Byte 0 is the opcode.
    uint8_t usage[15];
};

#define BS_PENDING 0

// The entry, or NULL. `known`: whether the opcode exists with another service action.
const struct bs_opcode *bs_opcode_find(uint8_t opcode, uint16_t action, bool *known);

// ---- Extensions

struct bs_extension {
    const char *name;
    // The LUN is being opened: lun->volume is there, commands do not run yet. 0 or -errno, then the
    // LUN is not opened and `stop` not called. May be NULL, as all below.
    int (*start)(struct bs_lun *lun);
    // The LUN is being closed: no command runs; lun->volume is still open, or NULL.
    void (*stop)(struct bs_lun *lun);
    // May `cmd` run now? 0, or a SAM status with sense built. Asked in the order of the list.
    int (*admit)(struct bs_lun *lun, struct scsi_cmd *cmd, const struct bs_opcode *op);
    // An IO ended with `error` (negative errno), before the command is completed. True: `status`
    // was set to what the initiator shall see instead.
    bool (*failed)(struct bs_lun *lun, int error, struct bs_status *status);
    // The core made progress: also when nothing arrives for this LUN. Must be cheap.
    void (*progress)(struct bs_lun *lun);
    // TPGS field of standard INQUIRY data, bits 4 and 5 of byte 5.
    uint8_t inquiry_tpgs;
    const struct bs_opcode *opcodes;
    unsigned opcode_count;
};

// NULL at the end, at most BS_EXTENSIONS_MAX. extensions.c.
extern const struct bs_extension *const bs_extensions[];

// ---- A LUN

struct bs_lun {
    struct scsi_lu *lu;
    struct cg_list node; // the client's LUNs
    struct bs_options options;
    char *name; // of the volume
    struct bs_client *client;
    struct cg_volume *volume;   // NULL: not ready. Change it with bs_lun_adopt.
    struct cg_volume_info info; // of the volume that was open last
    struct bs_command *commands;
    struct cg_list free_commands;
    unsigned running;                   // commands with IO under way
    void *extension[BS_EXTENSIONS_MAX]; // private to bs_extensions[i]
    uint64_t logged_at_ns;              // the last failure that was logged
    unsigned suppressed;                // failures since then
    bool opened;
};

// The module's part of a logical unit; it is behind tgtd's.
static inline struct bs_lun *bs_lun_of(struct scsi_lu *lu) {
    return (struct bs_lun *)(void *)(lu + 1);
}

// Makes `volume` (may be NULL) the LUN's: size, identifiers, write protection follow it, and a
// change of size is a unit attention. Returns the one before, which the caller closes; commands
// under way on it still end.
struct cg_volume *bs_lun_adopt(struct bs_lun *lun, struct cg_volume *volume);

// Takes a changed size over, with a unit attention for every session. Called after the core made
// progress.
void bs_lun_refresh(struct bs_lun *lun);

// A unit attention 06/`code` (ASC << 8 | ASCQ) for every session of the LUN here.
void bs_lun_attention(struct bs_lun *lun, uint16_t code);

// One line to tgtd's log with the volume's name in front. Errors on the IO path: at most a line a
// second.
void bs_lun_log(struct bs_lun *lun, bool error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// The core's client that the LUN uses.
struct cg_client *bs_client_core(struct bs_client *client);

// ---- Commands

// A command with IO under way. One IO at a time, in `io`.
struct bs_command {
    struct cg_list node; // free
    struct bs_lun *lun;
    struct scsi_cmd *cmd;
    struct cg_io io;
    struct iovec iov[2];
    uint64_t deadline_ns; // of the command, monotonic
    uint64_t offset;      // bytes
    uint64_t length;
    uint64_t done;  // bytes of `length` that are finished
    uint32_t step;  // the operation's
    void *scratch;  // freed at the end
    void *argument; // the operation's
    // The IO has ended with io.result. Calls bs_command_submit again or bs_command_end.
    void (*next)(struct bs_command *command);
};

// Begins a command that does not end at once: a slot, the deadline, tgtd told. NULL when the LUN
// has BS_COMMANDS_MAX already: return BS_FULL then.
struct bs_command *bs_command_begin(struct bs_lun *lun, struct scsi_cmd *cmd);
#define BS_FULL SAM_TASK_SET_FULL

// Submits command->io (op, offset, length, iov and the like are set; `done`, `user` and the timeout
// are set here). `next` is called when it ends; never inside this call.
void bs_command_submit(struct bs_command *command);

// Milliseconds until the command's deadline, at least 1.
uint64_t bs_command_remaining_ms(const struct bs_command *command);

// Ends the command and frees the slot. With a status other than GOOD nothing is sent of the data.
void bs_command_end(struct bs_command *command, struct bs_status status);

// Ends it as the result of an IO says: 0 or negative errno. Logs and tells the extensions.
void bs_command_end_result(struct bs_command *command, int result);

// ---- Results of commands that end at once

// Builds sense for `status`, sets the residuals so that nothing is sent, returns the SAM status.
int bs_finish(struct scsi_cmd *cmd, struct bs_status status);

// CHECK CONDITION with key and code (ASC << 8 | ASCQ).
int bs_sense(struct scsi_cmd *cmd, uint8_t key, uint16_t code);

// Copies at most `allocation` of the `length` bytes of `data` to the initiator; GOOD.
int bs_reply(struct scsi_cmd *cmd, const void *data, uint32_t length, uint32_t allocation);

#endif
