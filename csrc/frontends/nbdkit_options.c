// SPDX-License-Identifier: BSD-3-Clause
#include "frontends/nbdkit_options.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define PASSWORD_MAX 1024

const char nbd_options_help[] =
    "volume=NAME          The volume to serve; left out, the client's export name chooses.\n"
    "mds=HOST:PORT[,...]  Metadata servers (default " NBD_DEFAULT_MDS ").\n"
    "owner=NAME           The volume's owner (default copygate).\n"
    "password-file=FILE   The password, for owner=root.\n"
    "shared=BOOL          Write without fencing other writers (default no).\n"
    "timeout=SECONDS      Deadline of each request (default 25).";

static int set_text(char **field, const char *key, const char *value) {
    if (*field != NULL) {
        nbdkit_error("%s= is given twice: give it once", key);
        return -1;
    }
    *field = strdup(value);
    if (*field == NULL) {
        nbdkit_error("%s=: %m", key);
        return -1;
    }
    return 0;
}

static int set_volume(struct nbd_options *options, const char *value) {
    if (value[strspn(value, "/")] == '\0') {
        nbdkit_error(
            "volume=%s names no volume: give a name as `copygate volume list` shows it, or "
            "leave volume= out and let the client's export name choose",
            value);
        return -1;
    }
    if (strlen(value) > NBD_NAME_MAX) {
        nbdkit_error("volume= is longer than %d bytes: no volume has such a name", NBD_NAME_MAX);
        return -1;
    }
    return set_text(&options->volume, "volume", value);
}

static int set_mds(struct nbd_options *options, const char *value) {
    if (value[0] == '\0') {
        nbdkit_error("mds= is empty: give the metadata servers as HOST:PORT[,HOST:PORT...], for "
                     "example mds=" NBD_DEFAULT_MDS);
        return -1;
    }
    return set_text(&options->mds, "mds", value);
}

static int set_owner(struct nbd_options *options, const char *value) {
    if (value[0] == '\0') {
        nbdkit_error(
            "owner= is empty: give the volume's owner, or leave owner= out for `copygate`");
        return -1;
    }
    return set_text(&options->owner, "owner", value);
}

// Reads the file into `text` and cuts it at the first line's end. Returns the length or -1.
static ssize_t read_first_line(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd == -1) {
        nbdkit_error("password-file=%s: cannot open: %m", path);
        return -1;
    }
    size_t length = 0;
    while (length < size) {
        ssize_t n = read(fd, text + length, size - length);
        if (n == -1 && errno == EINTR) {
            continue;
        }
        if (n == -1) {
            nbdkit_error("password-file=%s: cannot read: %m", path);
            close(fd);
            return -1;
        }
        if (n == 0) {
            break;
        }
        length += (size_t)n;
    }
    close(fd);
    const char *end = memchr(text, '\n', length);
    return end != NULL ? end - text : (ssize_t)length;
}

static int set_password_file(struct nbd_options *options, const char *path) {
    char text[PASSWORD_MAX + 1];
    if (options->password != NULL) {
        nbdkit_error("password-file= is given twice: give it once");
        return -1;
    }
    ssize_t length = read_first_line(path, text, sizeof(text));
    if (length < 0) {
        return -1;
    }
    if (length > 0 && text[length - 1] == '\r') {
        length--;
    }
    if (length == 0 || length > PASSWORD_MAX) {
        nbdkit_error("password-file=%s: the first line %s: it must hold the password, at most %d "
                     "bytes",
                     path, length == 0 ? "is empty" : "is too long", PASSWORD_MAX);
        return -1;
    }
    options->password = strndup(text, (size_t)length);
    explicit_bzero(text, sizeof(text));
    if (options->password == NULL) {
        nbdkit_error("password-file=%s: %m", path);
        return -1;
    }
    return 0;
}

static int set_shared(struct nbd_options *options, const char *value) {
    if (options->shared_given) {
        nbdkit_error("shared= is given twice: give it once");
        return -1;
    }
    // nbdkit_parse_bool's own message does not name the option.
    static const char *const yes[] = {"1", "true", "t", "yes", "y", "on"};
    static const char *const no[] = {"0", "false", "f", "no", "n", "off"};
    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
        if (strcasecmp(value, yes[i]) == 0 || strcasecmp(value, no[i]) == 0) {
            options->shared = strcasecmp(value, yes[i]) == 0;
            options->shared_given = true;
            return 0;
        }
    }
    nbdkit_error("shared=%s is neither yes nor no: give shared=yes or shared=no", value);
    return -1;
}

static int set_timeout(struct nbd_options *options, const char *value) {
    if (options->timeout_ms != 0) {
        nbdkit_error("timeout= is given twice: give it once");
        return -1;
    }
    size_t digits = strspn(value, "0123456789");
    unsigned long seconds = 0;
    if (digits > 0 && digits <= 9 && value[digits] == '\0') {
        seconds = strtoul(value, NULL, 10);
    }
    if (seconds < 1 || seconds > NBD_TIMEOUT_MAX) {
        nbdkit_error(
            "timeout=%s is not a deadline: give whole seconds between 1 and %d, for example "
            "timeout=25",
            value, NBD_TIMEOUT_MAX);
        return -1;
    }
    options->timeout_ms = seconds * 1000;
    return 0;
}

int nbd_options_set(struct nbd_options *options, const char *key, const char *value) {
    static const struct {
        const char *key;
        int (*set)(struct nbd_options *options, const char *value);
    } known[] = {
        {"volume", set_volume}, {"mds", set_mds},
        {"owner", set_owner},   {"password-file", set_password_file},
        {"shared", set_shared}, {"timeout", set_timeout},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(key, known[i].key) == 0) {
            return known[i].set(options, value);
        }
    }
    if (strcmp(key, "readonly") == 0) {
        nbdkit_error("readonly=%s is not an option: run nbdkit with -r to serve read-only", value);
        return -1;
    }
    nbdkit_error(
        "%s= is not an option of copygate: known are volume=, mds=, owner=, password-file=, "
        "shared= and timeout=",
        key);
    return -1;
}

int nbd_options_complete(struct nbd_options *options) {
    bool root = options->owner != NULL && strcmp(options->owner, "root") == 0;
    if (options->password != NULL && !root) {
        nbdkit_error("password-file= is for owner=root alone: other owners have no password; add "
                     "owner=root or leave password-file= out");
        return -1;
    }
    if (options->mds == NULL) {
        options->mds = strdup(NBD_DEFAULT_MDS);
        if (options->mds == NULL) {
            nbdkit_error("mds=: %m");
            return -1;
        }
    }
    return 0;
}

void nbd_options_free(struct nbd_options *options) {
    free(options->volume);
    free(options->mds);
    free(options->owner);
    if (options->password != NULL) {
        explicit_bzero(options->password, strlen(options->password));
        free(options->password);
    }
    *options = (struct nbd_options){0};
}
