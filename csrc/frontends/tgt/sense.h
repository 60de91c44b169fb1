// SPDX-License-Identifier: GPL-2.0-only
//
// SCSI status, sense keys and additional sense codes that the module uses, and what errors of the
// IO core become (pure).
#ifndef CG_FRONTENDS_TGT_SENSE_H
#define CG_FRONTENDS_TGT_SENSE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    SAM_GOOD = 0x00,
    SAM_CHECK_CONDITION = 0x02,
    SAM_BUSY = 0x08,
    SAM_RESERVATION_CONFLICT = 0x18,
    SAM_TASK_SET_FULL = 0x28,
    SAM_TASK_ABORTED = 0x40,
};

enum {
    KEY_NO_SENSE = 0x0,
    KEY_NOT_READY = 0x2,
    KEY_MEDIUM_ERROR = 0x3,
    KEY_HARDWARE_ERROR = 0x4,
    KEY_ILLEGAL_REQUEST = 0x5,
    KEY_UNIT_ATTENTION = 0x6,
    KEY_DATA_PROTECT = 0x7,
    KEY_ABORTED_COMMAND = 0xb,
    KEY_MISCOMPARE = 0xe,
};

// ASC << 8 | ASCQ
enum {
    ASC_NONE = 0x0000,
    ASC_BECOMING_READY = 0x0401,
    ASC_TRANSITION = 0x040a,
    ASC_STANDBY = 0x040b,
    ASC_UNAVAILABLE = 0x040c,
    ASC_COMMUNICATION_TIMEOUT = 0x0801,
    ASC_UNRECOVERED_READ = 0x1100,
    ASC_PARAMETER_LENGTH = 0x1a00,
    ASC_MISCOMPARE = 0x1d00,
    ASC_INVALID_OPCODE = 0x2000,
    ASC_LBA_OUT_OF_RANGE = 0x2100,
    ASC_INVALID_FIELD_IN_CDB = 0x2400,
    ASC_INVALID_FIELD_IN_PARAMETERS = 0x2600,
    ASC_WRITE_PROTECTED = 0x2700,
    ASC_SPACE_ALLOCATION_FAILED = 0x2707,
    ASC_MODE_CHANGED = 0x2a01,
    ASC_RESERVATIONS_PREEMPTED = 0x2a03,
    ASC_ACCESS_STATE_CHANGED = 0x2a06,
    ASC_CAPACITY_CHANGED = 0x2a09,
    ASC_SAVING_UNSUPPORTED = 0x3900,
    ASC_UNIT_FAILURE = 0x3e01,
    ASC_INTERNAL_FAILURE = 0x4400,
    ASC_INSUFFICIENT_RESOURCES = 0x5503,
};

struct bs_status {
    uint8_t status; // SAM_*
    uint8_t key;    // of CHECK CONDITION
    uint16_t code;
    bool has_info;
    uint64_t info;
};

#define BS_GOOD ((struct bs_status){.status = SAM_GOOD})
#define BS_CHECK(sense_key, sense_code)                                                            \
    ((struct bs_status){.status = SAM_CHECK_CONDITION, .key = (sense_key), .code = (sense_code)})

// What the initiator is told of an IO's result: 0, or a negative errno of copygate.h. Transient
// trouble is BUSY or NOT READY, which initiators repeat; MEDIUM ERROR is for data that is lost.
// -EILSEQ carries `mismatch`, the first differing byte.
struct bs_status bs_status_of(int result, uint64_t mismatch);

#endif
