// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>

#include "frontends/tgt/sense.h"

struct bs_status bs_status_of(int result, uint64_t mismatch) {
    struct bs_status status;
    switch (-result) {
    case 0:
        return BS_GOOD;
    case ETIMEDOUT: // the store may be back at the next try; a repeated write is the same write
    case ENOMEM:
    case ESHUTDOWN:
    case EAGAIN:
        return (struct bs_status){.status = SAM_BUSY};
    case EBUSY:
        return (struct bs_status){.status = SAM_TASK_SET_FULL};
    case EBADMSG:
        return BS_CHECK(KEY_MEDIUM_ERROR, ASC_UNRECOVERED_READ);
    case ENOSPC:
        return BS_CHECK(KEY_DATA_PROTECT, ASC_SPACE_ALLOCATION_FAILED);
    case EROFS:
        return BS_CHECK(KEY_DATA_PROTECT, ASC_WRITE_PROTECTED);
    case ESTALE:
        return BS_CHECK(KEY_NOT_READY, ASC_STANDBY);
    case EINVAL: // the volume became shorter
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
    case EILSEQ:
        status = BS_CHECK(KEY_MISCOMPARE, ASC_MISCOMPARE);
        status.has_info = true;
        status.info = mismatch;
        return status;
    case ENOENT:
    case EACCES:
        return BS_CHECK(KEY_HARDWARE_ERROR, ASC_UNIT_FAILURE);
    default:
        return BS_CHECK(KEY_HARDWARE_ERROR, ASC_INTERNAL_FAILURE);
    }
}
