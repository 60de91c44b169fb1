// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/lun.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "frontends/tgt/canary.h"
#include "frontends/tgt/client.h"
#include "frontends/tgt/command.h"
#include "frontends/tgt/config.h"
#include "frontends/tgt/dispatch.h"

#define SENTENCE_MAX 512
#define NO_NEXUS     UINT64_MAX // no session has this id
// One more than commands may run: the core counts to this before it refuses.
#define INFLIGHT_MAX (BS_COMMANDS_MAX + 1)

void bs_lun_log(struct bs_lun *lun, bool error, const char *format, ...) {
    char line[SENTENCE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    const char *name = lun->name != NULL ? lun->name : "?";
    if (!error) {
        log_warning("copygate: %s: %s\n", name, line);
        return;
    }
    uint64_t now = cg_now_ns();
    if (lun->logged_at_ns != 0 && now - lun->logged_at_ns < CG_NS_PER_S) {
        lun->suppressed++;
        return;
    }
    lun->logged_at_ns = now;
    log_error("copygate: %s: %s\n", name, line);
    if (lun->suppressed > 0) {
        log_error("copygate: %s: %u more failures since the last line\n", name, lun->suppressed);
        lun->suppressed = 0;
    }
}

bool bs_lun_protected(const struct bs_lun *lun) {
    const struct tgt_attributes *attributes = &lun->lu->attributes;
    return lun->options.read_only || attributes->read_only || attributes->software_write_protect;
}

void bs_lun_attention(struct bs_lun *lun, uint16_t code) {
    ua_sense_add_other_it_nexus(NO_NEXUS, lun->lu, code);
}

// The whole LUN is ours: tgtd's own handlers know nothing of gateways and have the errors that
// opcodes.c names. Only its transport, task management and unit attentions stay.
static void take_over(struct scsi_lu *lu, const struct bs_options *options) {
    for (unsigned i = 0; i < TGT_OPCODES; i++) {
        lu->device.operations[i] = (struct tgt_operation){.perform = bs_dispatch};
    }
    lu->device.lu_config = bs_config;
    lu->block_shift = options->block_size == 4096 ? 12 : 9;
    lu->attributes.thin = options->thin;
    lu->attributes.read_only = options->read_only;
}

int32_t bs_lun_init(struct scsi_lu *lu, char *options) {
    const char *unknown = bs_canary(lu, lu->store);
    if (unknown != NULL) {
        log_error("copygate: this tgtd is not one that bs_copygate.so was made for: %s is not as "
                  "expected. tgt 1.0.85 to 1.0.97 are known; the LUN is refused.\n",
                  unknown);
        return TGTADM_UNKNOWN_ERR;
    }
    struct bs_lun *lun = bs_lun_of(lu);
    char error[SENTENCE_MAX] = "";
    lun->lu = lu;
    cg_list_init(&lun->node);
    int result = bs_options_parse(options, &lun->options, error, sizeof(error));
    if (result != 0) {
        log_error("copygate: bsopts: %s\n", error);
        return result == -ENOMEM ? TGTADM_NOMEM : TGTADM_INVALID_REQUEST;
    }
    if (bs_commands_create(lun) != 0) {
        bs_options_free(&lun->options);
        return TGTADM_NOMEM;
    }
    take_over(lu, &lun->options);
    return TGTADM_SUCCESS;
}

static void stop_extensions(struct bs_lun *lun, unsigned count) {
    while (count-- > 0) {
        if (bs_extensions[count]->stop != NULL) {
            bs_extensions[count]->stop(lun);
        }
    }
}

static int start_extensions(struct bs_lun *lun, char *error, size_t error_size) {
    for (unsigned i = 0; bs_extensions[i] != NULL; i++) {
        int result = bs_extensions[i]->start != NULL ? bs_extensions[i]->start(lun) : 0;
        if (result != 0) {
            snprintf(error, error_size, "%s: %s", bs_extensions[i]->name, strerror(-result));
            stop_extensions(lun, i);
            return result;
        }
    }
    return 0;
}

static unsigned extension_count(void) {
    unsigned count = 0;
    while (bs_extensions[count] != NULL) {
        count++;
    }
    return count;
}

static int open_volume(struct bs_lun *lun, char *error, size_t error_size) {
    const struct bs_options *given = &lun->options;
    struct cg_volume_options options = {
        .struct_size = sizeof(options),
        .path = lun->name,
        // Whoever stands by must not take the volume from the active gateway.
        .flags = given->read_only || given->standby ? CG_OPEN_READ_ONLY : 0,
        .inflight_max = INFLIGHT_MAX,
        .io_timeout_ms = given->timeout_s * 1000,
    };
    struct cg_volume *volume = NULL;
    int result = cg_volume_open(bs_client_core(lun->client), &options, &volume, error, error_size);
    if (result == 0) {
        bs_lun_adopt(lun, volume);
    }
    return result;
}

int32_t bs_lun_open(struct scsi_lu *lu, char *path, int *fd, uint64_t *size) {
    struct bs_lun *lun = bs_lun_of(lu);
    char error[SENTENCE_MAX] = "no memory";
    int result = -ENOMEM;
    lun->name = strdup(path);
    if (lun->name != NULL) {
        result = bs_client_join(lun, error, sizeof(error));
    }
    if (result == 0) {
        result = open_volume(lun, error, sizeof(error));
    }
    if (result == 0) {
        result = start_extensions(lun, error, sizeof(error));
    }
    if (result != 0) {
        log_error("copygate: cannot open volume %s: %s\n", path, error);
        bs_lun_close(lu);
        return result;
    }
    lun->opened = true;
    *fd = -1;
    *size = lun->info.size;
    return 0;
}

struct cg_volume *bs_lun_adopt(struct bs_lun *lun, struct cg_volume *volume) {
    struct cg_volume *before = lun->volume;
    lun->volume = volume;
    bs_lun_refresh(lun);
    return before;
}

void bs_lun_refresh(struct bs_lun *lun) {
    if (lun->volume == NULL) {
        return;
    }
    cg_volume_info(lun->volume, &lun->info);
    if (lun->lu->size == lun->info.size) {
        return;
    }
    lun->lu->size = lun->info.size;
    if (lun->opened) {
        bs_lun_attention(lun, ASC_CAPACITY_CHANGED);
    }
}

void bs_lun_close(struct scsi_lu *lu) {
    struct bs_lun *lun = bs_lun_of(lu);
    if (lun->opened) {
        stop_extensions(lun, extension_count());
        lun->opened = false;
    }
    cg_volume_close(lun->volume);
    lun->volume = NULL;
    bs_client_leave(lun);
    free(lun->name);
    lun->name = NULL;
}

void bs_lun_exit(struct scsi_lu *lu) {
    struct bs_lun *lun = bs_lun_of(lu);
    bs_commands_destroy(lun);
    bs_options_free(&lun->options);
}

int32_t bs_lun_submit(struct scsi_cmd *cmd) {
    (void)cmd;
    return -ENOSYS;
}
