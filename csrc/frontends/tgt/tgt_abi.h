// SPDX-License-Identifier: GPL-2.0-only
//
// What this module knows of tgtd's memory: the layout of the structs that both touch and the
// functions that tgtd exports. Debian ships no headers of tgt, so the layout is written down here,
// asserted below, and compared with tgt's own source by `make check-tgt-abi`. It did not change
// from tgt 1.0.85 to 1.0.97. At run time canary.c refuses a tgtd that looks otherwise.
//
// The names of tgtd's functions are its own; those of types and fields are ours where that is
// clearer. Lists are circular with a head, as our own (base/list.h).
#ifndef CG_FRONTENDS_TGT_ABI_H
#define CG_FRONTENDS_TGT_ABI_H

#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

// Results of tgtd's management calls.
enum {
    TGTADM_SUCCESS = 0,
    TGTADM_UNKNOWN_ERR = 1,
    TGTADM_NOMEM = 2,
    TGTADM_INVALID_REQUEST = 17,
};

enum tgt_direction {
    TGT_DIRECTION_NONE = 0,
    TGT_DIRECTION_WRITE = 1, // the initiator sends data
    TGT_DIRECTION_READ = 2,
    TGT_DIRECTION_BOTH = 3,
};

enum {
    TGT_COMMAND_ASYNC = 2, // bit of scsi_cmd.state: the module calls target_cmd_io_done later
    TGT_SENSE_MAX = 252,
    TGT_OPCODES = 256,
    TGT_VPD_PAGES = 128,
    TGT_TYPE_DISK = 0,
};

struct scsi_cmd;
struct scsi_lu;
struct tgt_nexus;
struct tgt_nexus_lu;

struct tgt_data {
    uint64_t buffer;      // address; page-aligned; not initialised where the initiator reads
    uint32_t length;      // what the initiator expects to be transferred
    uint32_t transferred; // what is
    int32_t residual;     // positive: less than expected; negative: more was asked for
};

struct tgt_target {
    char *name; // IQN
    int32_t tid;
    int32_t driver;
    int32_t state;
    struct cg_list siblings;
    struct cg_list devices;
    struct cg_list nexuses; // struct tgt_nexus.siblings
    void *store;
    struct cg_list acl;
    struct cg_list iqn_acl;
    uint64_t account[3];
    struct cg_list driver_siblings;
};

struct tgt_nexus {
    uint64_t id; // the iSCSI session's TSIH
    long created;
    struct cg_list commands;
    struct tgt_target *target;
    struct cg_list siblings;
    int32_t host;
    struct cg_list logical_units; // struct tgt_nexus_lu.nexus_siblings
    char *info;                   // text that `tgtadm --op show` prints for the session
};

struct tgt_nexus_lu {
    struct scsi_lu *lu;
    uint64_t nexus_id;
    uint64_t statistics[8];
    struct cg_list nexus_siblings;
    struct cg_list lu_siblings;
    struct cg_list unit_attentions;
    int32_t prevent_removal;
};

struct scsi_cmd {
    struct tgt_target *target;
    struct cg_list nexus_siblings;
    struct cg_list queue_siblings;
    uint64_t device_id; // the LUN as addressed; `dev` is another when there is none
    struct scsi_lu *dev;
    unsigned long state;
    int32_t direction; // enum tgt_direction
    struct tgt_data in;
    struct tgt_data out;
    uint64_t nexus_id;
    uint64_t offset;
    uint32_t length;
    uint8_t *cdb;
    int32_t cdb_length;
    uint8_t lun[8];
    int32_t attribute;
    uint64_t tag;
    int32_t result;
    void *management;
    uint8_t sense[TGT_SENSE_MAX];
    int32_t sense_length;
    struct cg_list store_siblings; // the module's
    struct tgt_nexus *nexus;
    struct tgt_nexus_lu *nexus_lu;
};

typedef int (*tgt_perform)(int host, struct scsi_cmd *cmd);

struct tgt_operation {
    tgt_perform perform; // returns a SAM status
    void *actions;
    uint8_t reservation_bits;
};

struct tgt_device_template {
    uint8_t type;
    int32_t (*lu_init)(struct scsi_lu *lu);
    void (*lu_exit)(struct scsi_lu *lu);
    int32_t (*lu_config)(struct scsi_lu *lu, char *parameters);
    int32_t (*lu_online)(struct scsi_lu *lu);
    int32_t (*lu_offline)(struct scsi_lu *lu);
    int32_t (*passthrough)(int host, struct scsi_cmd *cmd);
    struct tgt_operation operations[TGT_OPCODES];
    struct cg_list siblings;
};

struct backingstore_template {
    const char *name;
    int32_t data_size; // bytes of ours behind each scsi_lu
    int32_t (*open)(struct scsi_lu *lu, char *path, int *fd, uint64_t *size);
    void (*close)(struct scsi_lu *lu);
    int32_t (*init)(struct scsi_lu *lu, char *options);
    void (*exit)(struct scsi_lu *lu);
    int32_t (*submit)(struct scsi_cmd *cmd);
    int32_t open_flags;
    uint64_t opcodes[TGT_OPCODES / 64]; // all zero: every opcode reaches the device template
    struct cg_list siblings;
};

struct tgt_attributes {
    char scsi_id[37];
    char serial[37];
    uint64_t numeric_id;
    char vendor[9];
    char product[17];
    char revision[5];
    uint16_t version_descriptors[8];
    uint8_t device_type;
    char qualifier;
    char removable;
    char read_only;
    char software_write_protect;
    char thin;
    char online;
    char sense_format; // 0: fixed, 1: descriptor
    uint8_t physical_exponent;
    char no_automatic_exponent;
    uint16_t lowest_aligned;
    uint16_t rotation_rate;
    void *vpd[TGT_VPD_PAGES];
};

struct scsi_lu {
    int32_t fd;
    uint64_t address;
    uint64_t size; // bytes
    uint64_t lun;
    char *path;
    int32_t open_flags;
    uint32_t block_shift;
    struct cg_list siblings;
    struct cg_list nexuses; // struct tgt_nexus_lu.lu_siblings
    int32_t active_commands;
    unsigned long queue_state;
    struct cg_list queue;
    uint64_t reserve_id;
    struct tgt_device_template device; // a copy for this LUN alone
    struct backingstore_template *store;
    struct tgt_target *target;
    uint8_t block_descriptor[8];
    struct cg_list mode_pages;
    struct tgt_attributes attributes;
    struct cg_list registrations;
    uint32_t generation;
    void *holder;
    void *private_data;
    void *perform;
    void *done;
};

// Work that tgtd runs before it waits for events the next time.
struct tgt_scheduled {
    void (*run)(struct tgt_scheduled *scheduled);
    int32_t is_scheduled;
    void *data;
    struct cg_list siblings;
};

// ---- The layout

// check-tgt-abi.sh reads these lines: TGT_SIZE(our type, tgt's type, bytes) and
// TGT_OFFSET(our type, our field, tgt's type, tgt's field, bytes).
#define TGT_SIZE(type, theirs, bytes)                                                              \
    _Static_assert(sizeof(struct type) == (bytes), "struct " #type " has tgtd's size")
#define TGT_OFFSET(type, field, theirs, their_field, bytes)                                        \
    _Static_assert(offsetof(struct type, field) == (bytes),                                        \
                   #type "." #field " is where tgtd has it")

_Static_assert(sizeof(void *) == 8 && sizeof(long) == 8, "tgtd's layout is known for LP64");

// clang-format off
TGT_SIZE(scsi_cmd, scsi_cmd, 480);
TGT_SIZE(scsi_lu, scsi_lu, 7608);
TGT_SIZE(backingstore_template, backingstore_template, 112);
TGT_SIZE(tgt_target, target, 152);
TGT_SIZE(tgt_nexus, it_nexus, 88);
TGT_SIZE(tgt_nexus_lu, it_nexus_lu_info, 136);
TGT_SIZE(tgt_attributes, lu_phy_attr, 1176);
TGT_SIZE(tgt_device_template, device_type_template, 6216);
TGT_SIZE(tgt_operation, device_type_operations, 24);
TGT_SIZE(tgt_data, scsi_data_buffer, 24);
TGT_SIZE(tgt_scheduled, event_data, 40);

TGT_OFFSET(scsi_cmd, target, scsi_cmd, c_target, 0);
TGT_OFFSET(scsi_cmd, device_id, scsi_cmd, dev_id, 40);
TGT_OFFSET(scsi_cmd, dev, scsi_cmd, dev, 48);
TGT_OFFSET(scsi_cmd, state, scsi_cmd, state, 56);
TGT_OFFSET(scsi_cmd, direction, scsi_cmd, data_dir, 64);
TGT_OFFSET(scsi_cmd, in, scsi_cmd, in_sdb, 72);
TGT_OFFSET(scsi_cmd, out, scsi_cmd, out_sdb, 96);
TGT_OFFSET(scsi_cmd, nexus_id, scsi_cmd, cmd_itn_id, 120);
TGT_OFFSET(scsi_cmd, offset, scsi_cmd, offset, 128);
TGT_OFFSET(scsi_cmd, length, scsi_cmd, tl, 136);
TGT_OFFSET(scsi_cmd, cdb, scsi_cmd, scb, 144);
TGT_OFFSET(scsi_cmd, cdb_length, scsi_cmd, scb_len, 152);
TGT_OFFSET(scsi_cmd, lun, scsi_cmd, lun, 156);
TGT_OFFSET(scsi_cmd, attribute, scsi_cmd, attribute, 164);
TGT_OFFSET(scsi_cmd, tag, scsi_cmd, tag, 168);
TGT_OFFSET(scsi_cmd, result, scsi_cmd, result, 176);
TGT_OFFSET(scsi_cmd, management, scsi_cmd, mreq, 184);
TGT_OFFSET(scsi_cmd, sense, scsi_cmd, sense_buffer, 192);
TGT_OFFSET(scsi_cmd, sense_length, scsi_cmd, sense_len, 444);
TGT_OFFSET(scsi_cmd, store_siblings, scsi_cmd, bs_list, 448);
TGT_OFFSET(scsi_cmd, nexus, scsi_cmd, it_nexus, 464);
TGT_OFFSET(scsi_cmd, nexus_lu, scsi_cmd, itn_lu_info, 472);

TGT_OFFSET(scsi_lu, fd, scsi_lu, fd, 0);
TGT_OFFSET(scsi_lu, size, scsi_lu, size, 16);
TGT_OFFSET(scsi_lu, lun, scsi_lu, lun, 24);
TGT_OFFSET(scsi_lu, path, scsi_lu, path, 32);
TGT_OFFSET(scsi_lu, block_shift, scsi_lu, blk_shift, 44);
TGT_OFFSET(scsi_lu, nexuses, scsi_lu, lu_itl_info_list, 64);
TGT_OFFSET(scsi_lu, active_commands, scsi_lu, cmd_queue.active_cmd, 80);
TGT_OFFSET(scsi_lu, queue, scsi_lu, cmd_queue.queue, 96);
TGT_OFFSET(scsi_lu, reserve_id, scsi_lu, reserve_id, 112);
TGT_OFFSET(scsi_lu, device, scsi_lu, dev_type_template, 120);
TGT_OFFSET(scsi_lu, store, scsi_lu, bst, 6336);
TGT_OFFSET(scsi_lu, target, scsi_lu, tgt, 6344);
TGT_OFFSET(scsi_lu, block_descriptor, scsi_lu, mode_block_descriptor, 6352);
TGT_OFFSET(scsi_lu, mode_pages, scsi_lu, mode_pages, 6360);
TGT_OFFSET(scsi_lu, attributes, scsi_lu, attrs, 6376);
TGT_OFFSET(scsi_lu, holder, scsi_lu, pr_holder, 7576);

TGT_OFFSET(tgt_attributes, serial, lu_phy_attr, scsi_sn, 37);
TGT_OFFSET(tgt_attributes, vendor, lu_phy_attr, vendor_id, 88);
TGT_OFFSET(tgt_attributes, device_type, lu_phy_attr, device_type, 136);
TGT_OFFSET(tgt_attributes, removable, lu_phy_attr, removable, 138);
TGT_OFFSET(tgt_attributes, read_only, lu_phy_attr, readonly, 139);
TGT_OFFSET(tgt_attributes, software_write_protect, lu_phy_attr, swp, 140);
TGT_OFFSET(tgt_attributes, thin, lu_phy_attr, thinprovisioning, 141);
TGT_OFFSET(tgt_attributes, online, lu_phy_attr, online, 142);
TGT_OFFSET(tgt_attributes, sense_format, lu_phy_attr, sense_format, 143);
TGT_OFFSET(tgt_attributes, physical_exponent, lu_phy_attr, lbppbe, 144);
TGT_OFFSET(tgt_attributes, no_automatic_exponent, lu_phy_attr, no_auto_lbppbe, 145);
TGT_OFFSET(tgt_attributes, rotation_rate, lu_phy_attr, rotation_rate, 148);
TGT_OFFSET(tgt_attributes, vpd, lu_phy_attr, lu_vpd, 152);

TGT_OFFSET(tgt_device_template, type, device_type_template, type, 0);
TGT_OFFSET(tgt_device_template, lu_exit, device_type_template, lu_exit, 16);
TGT_OFFSET(tgt_device_template, lu_config, device_type_template, lu_config, 24);
TGT_OFFSET(tgt_device_template, operations, device_type_template, ops, 56);

TGT_OFFSET(backingstore_template, data_size, backingstore_template, bs_datasize, 8);
TGT_OFFSET(backingstore_template, open, backingstore_template, bs_open, 16);
TGT_OFFSET(backingstore_template, close, backingstore_template, bs_close, 24);
TGT_OFFSET(backingstore_template, init, backingstore_template, bs_init, 32);
TGT_OFFSET(backingstore_template, exit, backingstore_template, bs_exit, 40);
TGT_OFFSET(backingstore_template, submit, backingstore_template, bs_cmd_submit, 48);
TGT_OFFSET(backingstore_template, opcodes, backingstore_template, bs_supported_ops, 64);
TGT_OFFSET(backingstore_template, siblings, backingstore_template, backingstore_siblings, 96);

TGT_OFFSET(tgt_target, name, target, name, 0);
TGT_OFFSET(tgt_target, tid, target, tid, 8);
TGT_OFFSET(tgt_target, devices, target, device_list, 40);
TGT_OFFSET(tgt_target, nexuses, target, it_nexus_list, 56);

TGT_OFFSET(tgt_nexus, id, it_nexus, itn_id, 0);
TGT_OFFSET(tgt_nexus, commands, it_nexus, cmd_list, 16);
TGT_OFFSET(tgt_nexus, target, it_nexus, nexus_target, 32);
TGT_OFFSET(tgt_nexus, siblings, it_nexus, nexus_siblings, 40);
TGT_OFFSET(tgt_nexus, logical_units, it_nexus, itn_itl_info_list, 64);
TGT_OFFSET(tgt_nexus, info, it_nexus, info, 80);

TGT_OFFSET(tgt_nexus_lu, lu, it_nexus_lu_info, lu, 0);
TGT_OFFSET(tgt_nexus_lu, nexus_id, it_nexus_lu_info, itn_id, 8);
TGT_OFFSET(tgt_nexus_lu, nexus_siblings, it_nexus_lu_info, itn_itl_info_siblings, 80);
TGT_OFFSET(tgt_nexus_lu, lu_siblings, it_nexus_lu_info, lu_itl_info_siblings, 96);
TGT_OFFSET(tgt_nexus_lu, unit_attentions, it_nexus_lu_info, pending_ua_sense_list, 112);

TGT_OFFSET(tgt_operation, perform, device_type_operations, cmd_perform, 0);
TGT_OFFSET(tgt_data, length, scsi_data_buffer, length, 8);
TGT_OFFSET(tgt_data, transferred, scsi_data_buffer, transfer_len, 12);
TGT_OFFSET(tgt_data, residual, scsi_data_buffer, resid, 16);
TGT_OFFSET(tgt_scheduled, run, event_data, sched_handler, 0);
TGT_OFFSET(tgt_scheduled, is_scheduled, event_data, scheduled, 8);
TGT_OFFSET(tgt_scheduled, data, event_data, data, 16);
TGT_OFFSET(tgt_scheduled, siblings, event_data, e_list, 24);
// clang-format on

// ---- What tgtd exports. All on its one thread.

int register_backingstore_template(struct backingstore_template *store);

// Completes an asynchronous command with a SAM status; may run further commands of the LUN.
void target_cmd_io_done(struct scsi_cmd *cmd, int status);

void sense_data_build(struct scsi_cmd *cmd, uint8_t key, uint16_t code);
// With the INFORMATION field; it is left out where fixed format has no room (above 32 bits).
void sense_data_build_with_info(struct scsi_cmd *cmd, uint8_t key, uint16_t code, uint64_t info);

// A unit attention 06/`code` for one session of the LUN; for all sessions but `nexus_id`.
void ua_sense_add_it_nexus(uint64_t nexus_id, struct scsi_lu *lu, uint16_t code);
void ua_sense_add_other_it_nexus(uint64_t nexus_id, struct scsi_lu *lu, uint16_t code);

int tgt_event_add(int fd, int events, void (*handler)(int fd, int events, void *data), void *data);
void tgt_event_del(int fd);
void tgt_init_sched_event(struct tgt_scheduled *scheduled,
                          void (*run)(struct tgt_scheduled *scheduled), void *data);
void tgt_add_sched_event(struct tgt_scheduled *scheduled);
void tgt_remove_sched_event(struct tgt_scheduled *scheduled);

int spc_illegal_op(int host, struct scsi_cmd *cmd);
int spc_report_luns(int host, struct scsi_cmd *cmd);
void *find_mode_page(struct scsi_lu *lu, uint8_t page, uint8_t subpage);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

// ---- Small reads and writes of the above

static inline void *tgt_in_buffer(const struct scsi_cmd *cmd) {
    return (void *)(uintptr_t)cmd->in.buffer;
}

static inline void *tgt_out_buffer(const struct scsi_cmd *cmd) {
    return (void *)(uintptr_t)cmd->out.buffer;
}

static inline void tgt_residual(struct tgt_data *data, uint32_t actual) {
    data->transferred = actual < data->length ? actual : data->length;
    data->residual = (int32_t)(data->length - actual);
}

// The command has `actual` bytes for the initiator; what it expected beyond is residual. tgtd sends
// no more than this many bytes of the buffer.
static inline void tgt_set_in_length(struct scsi_cmd *cmd, uint32_t actual) {
    tgt_residual(&cmd->in, actual);
}

// The command asks for `actual` bytes from the initiator.
static inline void tgt_set_out_length(struct scsi_cmd *cmd, uint32_t actual) {
    tgt_residual(&cmd->out, actual);
}

#endif
