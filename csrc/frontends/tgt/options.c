// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OWNER_DEFAULT   "copygate"
#define GATEWAY_UNNAMED "gateway"

enum option {
    OPTION_MDS,
    OPTION_OWNER,
    OPTION_PASSWORD_FILE,
    OPTION_GATEWAY,
    OPTION_TIMEOUT,
    OPTION_BLOCK,
    OPTION_GROUP,
    OPTION_PORT,
    OPTION_READ_ONLY,
    OPTION_THIN,
    OPTION_STANDBY,
    OPTION_COUNT,
};

static const char *const names[OPTION_COUNT] = {
    [OPTION_MDS] = "mds",
    [OPTION_OWNER] = "owner",
    [OPTION_PASSWORD_FILE] = "password-file",
    [OPTION_GATEWAY] = "gateway",
    [OPTION_TIMEOUT] = "timeout",
    [OPTION_BLOCK] = "block",
    [OPTION_GROUP] = "group",
    [OPTION_PORT] = "port",
    [OPTION_READ_ONLY] = "read-only",
    [OPTION_THIN] = "thin",
    [OPTION_STANDBY] = "standby",
};

struct parser {
    struct bs_options *out;
    char *error;
    size_t error_size;
    bool given[OPTION_COUNT];
};

static int __attribute__((format(printf, 3, 4)))
refuse(const struct parser *parser, int result, const char *format, ...) {
    if (parser->error_size > 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(parser->error, parser->error_size, format, arguments);
        va_end(arguments);
    }
    return result;
}

static int set_text(const struct parser *parser, const char *key, const char *value, char **out) {
    size_t length = strlen(value);
    if (length == 0 || length > BS_TEXT_MAX) {
        return refuse(parser, -EINVAL, "%s= must have 1 to %u bytes", key, BS_TEXT_MAX);
    }
    *out = strdup(value);
    return *out != NULL ? 0 : refuse(parser, -ENOMEM, "no memory");
}

// The core separates servers by commas, which tgtd does not let through.
static int set_mds(const struct parser *parser, const char *value) {
    int result = set_text(parser, names[OPTION_MDS], value, &parser->out->mds);
    for (char *p = parser->out->mds; result == 0 && *p != '\0'; p++) {
        *p = *p == '|' ? ',' : *p;
    }
    return result;
}

static int set_number(const struct parser *parser, const char *key, const char *value,
                      uint32_t least, uint32_t most, uint32_t *out) {
    size_t digits = strspn(value, "0123456789");
    unsigned long number = 0;
    bool good = digits > 0 && digits <= 9 && value[digits] == '\0';
    if (good) {
        number = strtoul(value, NULL, 10);
    }
    if (!good || number < least || number > most) {
        return refuse(parser, -EINVAL, "%s=%s: give a number from %u to %u", key, value, least,
                      most);
    }
    *out = (uint32_t)number;
    return 0;
}

static int set_u16(const struct parser *parser, const char *key, const char *value, uint16_t *out) {
    uint32_t number = 0;
    int result = set_number(parser, key, value, 1, UINT16_MAX, &number);
    *out = (uint16_t)number;
    return result;
}

static int set_flag(const struct parser *parser, const char *key, const char *value, bool *out) {
    if (strcmp(value, "yes") != 0 && strcmp(value, "no") != 0) {
        return refuse(parser, -EINVAL, "%s=%s: give %s=yes or %s=no", key, value, key, key);
    }
    *out = strcmp(value, "yes") == 0;
    return 0;
}

static int set_block(const struct parser *parser, const char *value) {
    if (strcmp(value, "512") != 0 && strcmp(value, "4096") != 0) {
        return refuse(parser, -EINVAL, "block=%s: logical blocks have 512 or 4096 bytes", value);
    }
    parser->out->block_size = strcmp(value, "512") == 0 ? 512 : 4096;
    return 0;
}

static int set(const struct parser *parser, enum option option, const char *value) {
    struct bs_options *out = parser->out;
    const char *key = names[option];
    switch (option) {
    case OPTION_MDS:
        return set_mds(parser, value);
    case OPTION_OWNER:
        return set_text(parser, key, value, &out->owner);
    case OPTION_PASSWORD_FILE:
        return set_text(parser, key, value, &out->password_file);
    case OPTION_GATEWAY:
        return set_text(parser, key, value, &out->gateway);
    case OPTION_TIMEOUT:
        return set_number(parser, key, value, 1, BS_TIMEOUT_MAX, &out->timeout_s);
    case OPTION_BLOCK:
        return set_block(parser, value);
    case OPTION_GROUP:
        return set_u16(parser, key, value, &out->group);
    case OPTION_PORT:
        return set_u16(parser, key, value, &out->port);
    case OPTION_READ_ONLY:
        return set_flag(parser, key, value, &out->read_only);
    case OPTION_THIN:
        return set_flag(parser, key, value, &out->thin);
    case OPTION_STANDBY:
        return set_flag(parser, key, value, &out->standby);
    case OPTION_COUNT:
        break;
    }
    return -EINVAL;
}

static int parse_one(struct parser *parser, char *pair) {
    char *value = strchr(pair, '=');
    if (value == NULL) {
        return refuse(parser, -EINVAL, "\"%s\" is no option: options are key=value, separated by ;",
                      pair);
    }
    *value++ = '\0';
    for (unsigned i = 0; i < OPTION_COUNT; i++) {
        if (strcmp(pair, names[i]) != 0) {
            continue;
        }
        if (parser->given[i]) {
            return refuse(parser, -EINVAL, "%s= is given twice: give it once", pair);
        }
        parser->given[i] = true;
        return set(parser, (enum option)i, value);
    }
    return refuse(parser, -EINVAL,
                  "unknown option %s=: possible are mds, owner, password-file, timeout, block, "
                  "read-only, thin, gateway, group, port, standby",
                  pair);
}

static int fill_in(struct bs_options *out) {
    char host[BS_TEXT_MAX + 1] = "";
    if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0') {
        memcpy(host, GATEWAY_UNNAMED, sizeof(GATEWAY_UNNAMED));
    }
    out->mds = out->mds != NULL ? out->mds : strdup(BS_DEFAULT_MDS);
    out->owner = out->owner != NULL ? out->owner : strdup(OWNER_DEFAULT);
    out->gateway = out->gateway != NULL ? out->gateway : strdup(host);
    out->port = out->port != 0 ? out->port : out->group;
    return out->mds != NULL && out->owner != NULL && out->gateway != NULL ? 0 : -ENOMEM;
}

int bs_options_parse(const char *text, struct bs_options *out, char *error, size_t error_size) {
    *out = (struct bs_options){
        .timeout_s = BS_TIMEOUT_DEFAULT, .block_size = 512, .group = 1, .thin = true};
    struct parser parser = {.out = out, .error = error, .error_size = error_size};
    char *copy = strdup(text != NULL ? text : "");
    int result = copy != NULL ? 0 : refuse(&parser, -ENOMEM, "no memory");
    char *rest = copy;
    char *pair;
    while (result == 0 && (pair = strsep(&rest, ";")) != NULL) {
        result = pair[0] != '\0' ? parse_one(&parser, pair) : 0;
    }
    free(copy);
    if (result == 0 && fill_in(out) != 0) {
        result = refuse(&parser, -ENOMEM, "no memory");
    }
    if (result == 0 && out->standby && out->read_only) {
        result = refuse(&parser, -EINVAL,
                        "standby=yes with read-only=yes: a read-only LUN never takes its volume");
    }
    if (result != 0) {
        bs_options_free(out);
    }
    return result;
}

void bs_options_free(struct bs_options *options) {
    free(options->mds);
    free(options->owner);
    free(options->password_file);
    free(options->gateway);
    *options = (struct bs_options){0};
}
