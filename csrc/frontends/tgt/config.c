// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/config.h"

#include <stdlib.h>
#include <string.h>

#include "frontends/tgt/lun.h"

#define PREFIX "targetOps" // tgtadm puts it in front of the first parameter

static bool set(struct scsi_lu *lu, const char *key, const char *value) {
    if (strcmp(value, "0") != 0 && strcmp(value, "1") != 0) {
        return false;
    }
    char on = (char)(value[0] - '0');
    if (strcmp(key, "readonly") == 0) {
        lu->attributes.read_only = on;
    } else if (strcmp(key, "thin_provisioning") == 0) {
        lu->attributes.thin = on;
    } else {
        return false;
    }
    return true;
}

int32_t bs_config(struct scsi_lu *lu, char *parameters) {
    struct bs_lun *lun = bs_lun_of(lu);
    int32_t result = TGTADM_SUCCESS;
    if (parameters != NULL && strncmp(parameters, PREFIX, sizeof(PREFIX) - 1) == 0) {
        parameters += sizeof(PREFIX) - 1;
        parameters += *parameters != '\0';
    }
    char *pair;
    while ((pair = strsep(&parameters, ",")) != NULL) {
        if (pair[0] == '\0') {
            continue;
        }
        char *value = strchr(pair, '=');
        if (value != NULL) {
            *value++ = '\0';
        }
        if (value == NULL || !set(lu, pair, value)) {
            bs_lun_log(lun, false,
                       "parameter %s cannot be set: possible are readonly=0|1 and "
                       "thin_provisioning=0|1; all else follows the volume",
                       pair);
            result = TGTADM_INVALID_REQUEST;
        } else {
            bs_lun_attention(lun, ASC_MODE_CHANGED);
        }
    }
    return result;
}
