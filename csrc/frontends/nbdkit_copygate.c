// SPDX-License-Identifier: BSD-3-Clause
//
// The nbdkit plugin in C: `nbdkit copygate volume=NAME`. Thin by intent: options are in
// nbdkit_options.c, the opened volumes in nbdkit_volumes.c, and a request is one call of the core.
// docs/nbd.md is the manual.
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "copygate.h"
#include "frontends/nbdkit_options.h"
#include "frontends/nbdkit_volumes.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

// nbdkit 1.32 takes requests of at most 64 MiB (MAX_REQUEST_SIZE in its server/internal.h).
#define REQUEST_MAX (64U * 1024 * 1024)

#define EXTENTS_PER_CALL 512
// A reply with more extents than this would be large, and the client may ask again from its end.
#define EXTENTS_PER_REPLY 16384

static struct nbd_options options;

static void plugin_dump(void) {
    printf("copygate_version=%s\n", cg_version());
}

static int plugin_config(const char *key, const char *value) {
    return nbd_options_set(&options, key, value);
}

static int plugin_config_complete(void) {
    return nbd_options_complete(&options);
}

static int plugin_get_ready(void) {
    return nbd_volumes_check(&options);
}

static int plugin_after_fork(void) {
    return nbd_volumes_start(&options);
}

static void plugin_cleanup(void) {
    nbd_volumes_stop();
}

static void plugin_unload(void) {
    nbd_options_free(&options);
}

static const char *plain_name(const char *name) {
    return name + strspn(name, "/");
}

static int plugin_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports) {
    (void)readonly;
    (void)is_tls;
    // Without volume= the client chooses, and copygate.h has no listing: none is shown.
    if (options.volume == NULL) {
        return 0;
    }
    return nbdkit_add_export(exports, plain_name(options.volume), "Copygate volume");
}

static const char *plugin_default_export(int readonly, int is_tls) {
    (void)readonly;
    (void)is_tls;
    return options.volume != NULL ? plain_name(options.volume) : "";
}

static void *plugin_open(int readonly) {
    const char *name = nbdkit_export_name();
    if (name == NULL) {
        return NULL;
    }
    name = plain_name(name);
    if (options.volume != NULL) {
        if (name[0] != '\0' && strcmp(name, plain_name(options.volume)) != 0) {
            nbdkit_error("there is no export %s: this server has volume=%s alone", name,
                         options.volume);
            nbdkit_set_error(ENOENT);
            return NULL;
        }
        name = options.volume;
    } else if (name[0] == '\0') {
        nbdkit_error(
            "the client gave no export name: connect to nbd://HOST/VOLUME, or start nbdkit "
            "with volume=NAME");
        nbdkit_set_error(ENOENT);
        return NULL;
    }
    return nbd_volume_acquire(name, readonly != 0);
}

static void plugin_close(void *handle) {
    nbd_volume_release(handle);
}

static struct cg_volume_info info_of(void *handle) {
    struct nbd_volume *export = handle;
    struct cg_volume_info info = {0};
    cg_volume_info(export->volume, &info);
    return info;
}

static int64_t plugin_get_size(void *handle) {
    return (int64_t)info_of(handle).size;
}

static const char *plugin_export_description(void *handle) {
    const struct nbd_volume *export = handle;
    return nbdkit_printf_intern("Copygate volume %s", export->name);
}

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                             uint32_t *maximum) {
    *minimum = 1; // the store merges unaligned writes itself
    *preferred = info_of(handle).block_size;
    *maximum = REQUEST_MAX;
    return 0;
}

static int plugin_can_write(void *handle) {
    return !info_of(handle).read_only;
}

static int plugin_yes(void *handle) {
    (void)handle;
    return 1;
}

static int plugin_can_fua(void *handle) {
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int plugin_can_fast_zero(void *handle) {
    return info_of(handle).native;
}

static int plugin_pread(void *handle, void *buffer, uint32_t count, uint64_t offset,
                        uint32_t flags) {
    struct nbd_volume *export = handle;
    (void)flags;
    int r = cg_pread(export->volume, buffer, count, offset);
    return r < 0 ? nbd_volume_failed(export, "read", count, offset, r) : 0;
}

// NBDKIT_FLAG_FUA needs no code: every write that the core completes is durable.
static int plugin_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset,
                         uint32_t flags) {
    struct nbd_volume *export = handle;
    (void)flags;
    int r = cg_pwrite(export->volume, buffer, count, offset);
    return r < 0 ? nbd_volume_failed(export, "write", count, offset, r) : 0;
}

static int plugin_flush(void *handle, uint32_t flags) {
    struct nbd_volume *export = handle;
    (void)flags;
    int r = cg_flush(export->volume);
    return r < 0 ? nbd_volume_failed(export, "flush", 0, 0, r) : 0;
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    struct nbd_volume *export = handle;
    (void)flags;
    int r = cg_trim(export->volume, count, offset);
    return r < 0 ? nbd_volume_failed(export, "trim", count, offset, r) : 0;
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    struct nbd_volume *export = handle;
    uint32_t zero_flags = 0;
    if (!(flags & NBDKIT_FLAG_MAY_TRIM)) {
        zero_flags |= CG_IO_NO_HOLE;
    }
    if (flags & NBDKIT_FLAG_FAST_ZERO) {
        zero_flags |= CG_IO_FAST_ZERO;
    }
    int r = cg_write_zeroes(export->volume, count, offset, zero_flags);
    if (r == -ENOTSUP) {
        // Not a failure: nbdkit tells the client, or writes zeros where it did not ask to be fast.
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    return r < 0 ? nbd_volume_failed(export, "write zeroes", count, offset, r) : 0;
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                          struct nbdkit_extents *extents) {
    struct nbd_volume *export = handle;
    const uint64_t end = offset + count;
    struct cg_extent found[EXTENTS_PER_CALL];
    for (unsigned total = 0; offset < end && total < EXTENTS_PER_REPLY;) {
        int n = cg_block_status(export->volume, end - offset, offset, found, EXTENTS_PER_CALL);
        if (n < 0) {
            return nbd_volume_failed(export, "block status", end - offset, offset, n);
        }
        for (int i = 0; i < n; i++) {
            uint32_t type = ((found[i].flags & CG_EXTENT_HOLE) ? NBDKIT_EXTENT_HOLE : 0U) |
                            ((found[i].flags & CG_EXTENT_ZERO) ? NBDKIT_EXTENT_ZERO : 0U);
            if (nbdkit_add_extent(extents, found[i].offset, found[i].length, type) == -1) {
                return -1;
            }
            offset = found[i].offset + found[i].length;
        }
        total += (unsigned)n;
        if (n == 0 || (flags & NBDKIT_FLAG_REQ_ONE)) {
            break;
        }
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "copygate",
    .longname = "Copygate volumes",
    .version = COPYGATE_VERSION,
    .description = "Serves volumes of a Copygate or CurveBS store.",
    .magic_config_key = "volume",
    .config_help = nbd_options_help,
    .dump_plugin = plugin_dump,
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .get_ready = plugin_get_ready,
    .after_fork = plugin_after_fork,
    .cleanup = plugin_cleanup,
    .unload = plugin_unload,
    .list_exports = plugin_list_exports,
    .default_export = plugin_default_export,
    .open = plugin_open,
    .close = plugin_close,
    .export_description = plugin_export_description,
    .get_size = plugin_get_size,
    .block_size = plugin_block_size,
    .can_write = plugin_can_write,
    .can_flush = plugin_yes,
    .can_trim = plugin_yes,
    .can_zero = plugin_yes,
    .can_extents = plugin_yes,
    .can_multi_conn = plugin_yes,
    .can_fua = plugin_can_fua,
    .can_fast_zero = plugin_can_fast_zero,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .flush = plugin_flush,
    .trim = plugin_trim,
    .zero = plugin_zero,
    .extents = plugin_extents,
};

NBDKIT_REGISTER_PLUGIN(plugin)
