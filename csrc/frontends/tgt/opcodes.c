// SPDX-License-Identifier: GPL-2.0-only
//
// None of tgtd's own handlers for disks is used. Of 1.0.85's, UNMAP always answers with an error,
// WRITE SAME overflows at 4 GiB, COMPARE AND WRITE is switched off and not atomic, GET LBA STATUS
// looks at a local file, and reservations are forgotten with the session.
#include "frontends/tgt/opcodes.h"

#include "frontends/tgt/medium.h"
#include "frontends/tgt/unit.h"

#define READS  (BS_OP_MEDIUM | BS_OP_READS)
#define WRITES (BS_OP_MEDIUM | BS_OP_WRITES)

// Usage of the bytes that commands of one length have in common. The last byte is CONTROL: NACA
// and LINK are refused, so they are looked at.
#define USAGE_6(flags)                                                                             \
    { (flags) | 0x1f, 0xff, 0xff, 0xff, 0x07 }
#define USAGE_10(flags)                                                                            \
    { (flags), 0xff, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0x07 }
#define USAGE_12(flags)                                                                            \
    { (flags), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x07 }
#define USAGE_16(flags)                                                                            \
    { (flags), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x07 }

#define DPO_FUA 0xf8 // with the protection field
#define BYTCHK  0xf6
#define SAME_10 0xf8
#define SAME_16 0xf9

#define NONE BS_NO_ACTION

// clang-format off
const struct bs_opcode bs_opcodes[] = {
    {0x00,  6, NONE, BS_OP_MEDIUM, bs_test_unit_ready, {0, 0, 0, 0, 0x07}},
    {0x03,  6, NONE, 0, bs_request_sense, {0x01, 0, 0, 0xff, 0x07}},
    {0x08,  6, NONE, READS, bs_read, USAGE_6(0)},
    {0x0a,  6, NONE, WRITES, bs_write, USAGE_6(0)},
    {0x12,  6, NONE, 0, bs_inquiry, {0x01, 0xff, 0xff, 0xff, 0x07}},
    {0x15,  6, NONE, 0, bs_mode_select, {0x11, 0, 0, 0xff, 0x07}},
    {0x1a,  6, NONE, 0, bs_mode_sense, {0x08, 0xff, 0xff, 0xff, 0x07}},
    {0x1b,  6, NONE, 0, bs_start_stop, {0x01, 0, 0x0f, 0xf7, 0x07}},
    {0x1d,  6, NONE, 0, bs_send_diagnostic, {0x04, 0, 0, 0, 0x07}},
    {0x1e,  6, NONE, 0, bs_prevent_allow, {0, 0, 0, 0x03, 0x07}},
    {0x25, 10, NONE, BS_OP_MEDIUM, bs_read_capacity_10, {0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0x07}},
    {0x28, 10, NONE, READS, bs_read, USAGE_10(DPO_FUA)},
    {0x2a, 10, NONE, WRITES, bs_write, USAGE_10(DPO_FUA)},
    {0x2e, 10, NONE, WRITES, bs_write_and_verify, USAGE_10(BYTCHK)},
    {0x2f, 10, NONE, READS, bs_verify, USAGE_10(BYTCHK)},
    {0x34, 10, NONE, READS, bs_pre_fetch, USAGE_10(0x02)},
    {0x35, 10, NONE, BS_OP_MEDIUM, bs_synchronize_cache, USAGE_10(0x02)},
    {0x41, 10, NONE, WRITES, bs_write_same, USAGE_10(SAME_10)},
    {0x42, 10, NONE, WRITES, bs_unmap, {0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0x07}},
    {0x55, 10, NONE, 0, bs_mode_select, {0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0x07}},
    {0x5a, 10, NONE, 0, bs_mode_sense, {0x08, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x07}},
    {0x88, 16, NONE, READS, bs_read, USAGE_16(DPO_FUA)},
    {0x89, 16, NONE, BS_OP_READS | WRITES, bs_compare_and_write,
     {DPO_FUA, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0x07}},
    {0x8a, 16, NONE, WRITES, bs_write, USAGE_16(DPO_FUA)},
    {0x8b, 16, NONE, BS_OP_READS | WRITES, bs_orwrite, USAGE_16(DPO_FUA)},
    {0x8e, 16, NONE, WRITES, bs_write_and_verify, USAGE_16(BYTCHK)},
    {0x8f, 16, NONE, READS, bs_verify, USAGE_16(BYTCHK)},
    {0x90, 16, NONE, READS, bs_pre_fetch, USAGE_16(0x02)},
    {0x91, 16, NONE, BS_OP_MEDIUM, bs_synchronize_cache, USAGE_16(0x02)},
    {0x93, 16, NONE, WRITES, bs_write_same, USAGE_16(SAME_16)},
    {0x9e, 16, 0x10, BS_OP_MEDIUM, bs_read_capacity_16,
     {0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x07}},
    {0x9e, 16, 0x12, READS, bs_get_lba_status,
     {0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x07}},
    {0xa0, 12, NONE, 0, bs_report_luns, {0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x07}},
    {0xa3, 12, 0x0c, 0, bs_report_opcodes,
     {0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x07}},
    {0xa8, 12, NONE, READS, bs_read, USAGE_12(DPO_FUA)},
    {0xaa, 12, NONE, WRITES, bs_write, USAGE_12(DPO_FUA)},
    {0xae, 12, NONE, WRITES, bs_write_and_verify, USAGE_12(BYTCHK)},
    {0xaf, 12, NONE, READS, bs_verify, USAGE_12(BYTCHK)},
};
// clang-format on
const unsigned bs_opcode_count = sizeof(bs_opcodes) / sizeof(bs_opcodes[0]);
