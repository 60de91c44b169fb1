// SPDX-License-Identifier: GPL-2.0-only
#include <ctype.h>
#include <string.h>

#include "frontends/tgt/reservation_internal.h"

enum {
    PARAMETER_LIST_LENGTH = 24, // without TransportIDs, and up to the one of REGISTER AND MOVE
    TRANSPORT_ID_MIN = 20,      // the standard's, also what the shortest name is padded to
    ISCSI_PORT = 0x45,          // format 01b (name and ISID), protocol 5
};

static uint32_t be32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static struct bs_status parse_move(const uint8_t *data, size_t length,
                                   struct reservation_request *request) {
    uint32_t ids = be32(data + 20);
    if (ids < TRANSPORT_ID_MIN || ids % 4 != 0 || length != PARAMETER_LIST_LENGTH + (size_t)ids)
        return outcome_illegal(ASC_PARAMETER_LENGTH);
    request->unregister = (data[17] & 0x02) != 0;
    request->aptpl = (data[17] & 0x01) != 0;
    request->move_port = (uint32_t)data[18] << 8 | data[19];
    request->transport_ids = data + PARAMETER_LIST_LENGTH;
    request->transport_ids_length = ids;
    return outcome_good();
}

static struct bs_status parse_named(const uint8_t *data, size_t length,
                                    struct reservation_request *request) {
    // Defined for REGISTER alone.
    if (request->action != PR_REGISTER)
        return outcome_illegal(ASC_INVALID_FIELD_IN_PARAMETERS);
    if (length < PARAMETER_LIST_LENGTH + 4U)
        return outcome_illegal(ASC_PARAMETER_LENGTH);
    uint32_t ids = be32(data + PARAMETER_LIST_LENGTH);
    if (length != PARAMETER_LIST_LENGTH + 4U + (size_t)ids)
        return outcome_illegal(ASC_PARAMETER_LENGTH);
    request->transport_ids = data + PARAMETER_LIST_LENGTH + 4;
    request->transport_ids_length = ids;
    return outcome_good();
}

struct bs_status reservation_parse_out(const uint8_t *cdb, const uint8_t *data, size_t length,
                                       struct reservation_request *request) {
    memset(request, 0, sizeof(*request));
    request->action = cdb[1] & 0x1f;
    request->scope = cdb[2] >> 4;
    request->type = cdb[2] & 0x0f;
    if (request->action > PR_REGISTER_AND_MOVE)
        return outcome_illegal(ASC_INVALID_FIELD_IN_CDB);
    uint32_t announced = be32(cdb + 5);
    if (announced < PARAMETER_LIST_LENGTH || length < announced)
        return outcome_illegal(ASC_PARAMETER_LENGTH);
    request->key = reservation_be64(data);
    request->action_key = reservation_be64(data + 8);
    if (request->action == PR_REGISTER_AND_MOVE)
        return parse_move(data, announced, request);
    request->named_initiators = (data[20] & 0x08) != 0;
    request->all_target_ports = (data[20] & 0x04) != 0;
    request->aptpl = (data[20] & 0x01) != 0;
    if (request->named_initiators)
        return parse_named(data, announced, request);
    if (announced != PARAMETER_LIST_LENGTH)
        return outcome_illegal(ASC_PARAMETER_LENGTH);
    return outcome_good();
}

static bool isid_digits(const char *digits) {
    for (int i = 0; i < 12; i++) {
        if (!isxdigit((unsigned char)digits[i]))
            return false;
    }
    return digits[12] == '\0';
}

size_t reservation_transport_id_parse(const uint8_t *data, size_t length,
                                      char name[RESERVATION_NAME_SIZE]) {
    if (length < TRANSPORT_ID_MIN || data[0] != ISCSI_PORT)
        return 0;
    size_t text = (size_t)data[2] << 8 | data[3];
    if (text < TRANSPORT_ID_MIN - 4 || text % 4 != 0 || text > length - 4)
        return 0;
    size_t used = strnlen((const char *)data + 4, text);
    if (used == text || used >= RESERVATION_NAME_SIZE)
        return 0;
    memcpy(name, data + 4, used + 1);
    char *separator = strstr(name, ",i,0x");
    if (separator == NULL || separator == name || !isid_digits(separator + 5))
        return 0;
    // reservation_name writes lower case: the same port has one name.
    for (char *p = separator + 5; *p != '\0'; p++)
        *p = (char)tolower((unsigned char)*p);
    return 4 + text;
}

size_t reservation_transport_id_encode(const char *name, uint8_t *out) {
    size_t text = (strlen(name) + 1 + 3) & ~(size_t)3;
    if (text < TRANSPORT_ID_MIN - 4)
        text = TRANSPORT_ID_MIN - 4;
    memset(out, 0, 4 + text);
    out[0] = ISCSI_PORT;
    out[2] = (uint8_t)(text >> 8);
    out[3] = (uint8_t)text;
    memcpy(out + 4, name, strlen(name));
    return 4 + text;
}
