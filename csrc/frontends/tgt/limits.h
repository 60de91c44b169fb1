// SPDX-License-Identifier: GPL-2.0-only
//
// What VPD page B0 promises; the commands keep to it.
#ifndef CG_FRONTENDS_TGT_LIMITS_H
#define CG_FRONTENDS_TGT_LIMITS_H

#define BS_PHYSICAL_BLOCK    4096U         // bytes: what the store merges and returns
#define BS_OPTIMAL_TRANSFER  (1U << 20)    // bytes
#define BS_SAME_MAX          (32ULL << 20) // bytes of a WRITE SAME: as long as a WRITE may be
#define BS_UNMAP_BLOCKS      (1U << 20)    // logical, of all descriptors of an UNMAP together
#define BS_UNMAP_DESCRIPTORS 256U
#define BS_COMPARE_BLOCKS    128U         // of a COMPARE AND WRITE; the field has eight bits
#define BS_COMPARE_WINDOW    (256U << 10) // bytes that VERIFY holds at once
#define BS_ORWRITE_WINDOW    (64U << 10)  // bytes that ORWRITE changes at once

#endif
