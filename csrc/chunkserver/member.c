// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/member.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/crc32c.h"
#include "chunkserver/bytes.h"
#include "chunkserver/copyset_log_record.h"
#include "chunkserver/folder.h"

// u64 magic, u32 version, u32 CRC of the file with this field zero, u64 self, u64 from_lsn, then
// the founders.
#define MAGIC          UINT64_C(0x5245424d454d4743) // "CGMEMBER"
#define VERSION        1U
#define HEAD           32U
#define LENGTH_MAX     (HEAD + CG_LOG_CONFIG_SIZE_MAX)
#define PATH_MAX_BYTES 96U

static uint32_t crc_of(const uint8_t *data, size_t length) {
    uint8_t head[HEAD];
    memcpy(head, data, HEAD);
    cg_put_u32(head + 12, 0);
    return cg_crc32c(cg_crc32c(0, head, HEAD), data + HEAD, length - HEAD);
}

static int decode(const uint8_t *data, size_t length, struct cg_member *out) {
    if (length < HEAD || cg_get_u64(data) != MAGIC || cg_get_u32(data + 8) != VERSION ||
        cg_get_u32(data + 12) != crc_of(data, length) || cg_get_u64(data + 16) == 0) {
        return -EBADMSG;
    }
    out->self = cg_get_u64(data + 16);
    out->from_lsn = cg_get_u64(data + 24);
    int64_t used = cg_log_config_decode(data + HEAD, length - HEAD, &out->founders);
    return used == (int64_t)(length - HEAD) ? 0 : -EBADMSG;
}

int cg_member_load(struct cg_disk *disk, const char *folder, struct cg_member *out) {
    *out = (struct cg_member){0};
    char path[PATH_MAX_BYTES];
    snprintf(path, sizeof(path), "%s/member", folder);
    int handle = disk->ops->open(disk, path, O_RDWR);
    if (handle < 0) {
        return handle == -ENOENT ? 0 : handle;
    }
    uint8_t data[LENGTH_MAX + 1];
    int64_t length = disk->ops->read(disk, handle, data, sizeof(data), 0);
    disk->ops->close(disk, handle);
    return length < 0 ? (int)length : decode(data, (size_t)length, out);
}

int cg_member_save(struct cg_disk *disk, const char *folder, const struct cg_member *member) {
    uint8_t data[LENGTH_MAX] = {0};
    cg_put_u64(data, MAGIC);
    cg_put_u32(data + 8, VERSION);
    cg_put_u64(data + 16, member->self);
    cg_put_u64(data + 24, member->from_lsn);
    size_t length = HEAD + cg_log_config_encode(&member->founders, data + HEAD);
    cg_put_u32(data + 12, crc_of(data, length));
    return cg_replace_file(disk, folder, "member", data, length);
}
