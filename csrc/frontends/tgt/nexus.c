// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/nexus.h"

#include <string.h>

#include "frontends/tgt/reservation_internal.h"

// tgtd's iSCSI driver exports it. Weak, so that a tgtd without it can be told from one with it.
extern int iscsi_transportid(int tid, uint64_t nexus_id, char *buffer, int size)
    __attribute__((weak));

static const char SEPARATOR[] = ",i,0x";

bool nexus_names_known(void) {
    return iscsi_transportid != NULL;
}

bool nexus_parse(const uint8_t *id, size_t length, char name[RESERVATION_NAME_SIZE]) {
    if (length < 4 || id[0] != 0x45)
        return false;
    size_t text = (size_t)id[2] << 8 | id[3];
    if (text > length - 4)
        return false;
    const char *start = (const char *)id + 4;
    size_t used = strnlen(start, text);
    if (used == 0 || used == text || used >= RESERVATION_NAME_SIZE)
        return false;
    if (strstr(start, SEPARATOR) != NULL)
        return reservation_transport_id_parse(id, length, name) != 0;
    size_t separator = sizeof(SEPARATOR) - 1;
    size_t isid = used + 1 + separator;
    if (isid + 6 > text || memcmp(start + used + 1, SEPARATOR, separator) != 0)
        return false;
    return reservation_name(name, start, id + 4 + isid);
}

bool nexus_name(int tid, uint64_t nexus_id, char name[RESERVATION_NAME_SIZE]) {
    uint8_t id[NEXUS_TRANSPORT_ID_MAX];
    if (!nexus_names_known())
        return false;
    // A longer one is not written at all, and its length returned: such a name cannot be ours.
    int length = iscsi_transportid(tid, nexus_id, (char *)id, sizeof(id));
    return length > 0 && (size_t)length <= sizeof(id) && nexus_parse(id, (size_t)length, name);
}
