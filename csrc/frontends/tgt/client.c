// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define PASSWORD_MAX 1024
#define PUT_OFF_MAX  16U

struct bs_client {
    struct cg_list node;
    struct cg_list luns;
    struct cg_client *core;
    int fd;
    struct tgt_scheduled turn;
    unsigned submitted; // commands, since the last turn
    unsigned put_off;   // turns in a row
    char *mds;
    char *owner;
    char *password_file; // NULL: none
};

static struct cg_list clients = {&clients, &clients};

struct cg_client *bs_client_core(struct bs_client *client) {
    return client->core;
}

static void log_line(void *context, int level, const char *line) {
    (void)context;
    if (level >= 3) {
        log_error("copygate: %s\n", line);
    } else if (level >= 1) {
        log_warning("copygate: %s\n", line);
    }
}

static void progress(struct bs_client *client) {
    client->submitted = 0;
    client->put_off = 0;
    tgt_remove_sched_event(&client->turn);
    int handled = cg_client_progress(client->core);
    if (handled < 0) {
        log_error("copygate: the event loop: %s\n", strerror(-handled));
    }
    CG_LIST_FOREACH_SAFE (node, following, &client->luns) {
        struct bs_lun *lun = CG_CONTAINER_OF(node, struct bs_lun, node);
        if (!lun->opened) {
            continue;
        }
        bs_lun_refresh(lun);
        for (unsigned i = 0; bs_extensions[i] != NULL; i++) {
            if (bs_extensions[i]->progress != NULL) {
                bs_extensions[i]->progress(lun);
            }
        }
    }
}

static void on_readable(int fd, int events, void *data) {
    (void)fd;
    (void)events;
    progress(data);
}

// tgtd takes one command of a connection in a round of its loop. While every round brings one, the
// core waits for the next, so that they leave in one message to the chunkserver.
static void on_turn(struct tgt_scheduled *turn) {
    struct bs_client *client = turn->data;
    if (client->submitted > 0 && client->put_off < PUT_OFF_MAX) {
        client->submitted = 0;
        client->put_off++;
        tgt_add_sched_event(turn);
        return;
    }
    progress(client);
}

void bs_client_kick(struct bs_client *client) {
    client->submitted++;
    if (!client->turn.is_scheduled) {
        tgt_add_sched_event(&client->turn);
        cg_client_will_progress(client->core);
    }
}

// The first line of the file. Returns its length or -errno.
static ssize_t read_password(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return -errno;
    }
    size_t length = 0;
    ssize_t n = 1;
    while (length < size && n > 0) {
        n = read(fd, text + length, size - length);
        if (n < 0 && errno == EINTR) {
            n = 1;
        } else if (n > 0) {
            length += (size_t)n;
        }
    }
    int problem = n < 0 ? -errno : 0;
    close(fd);
    const char *end = memchr(text, '\n', length);
    length = end != NULL ? (size_t)(end - text) : length;
    length -= length > 0 && text[length - 1] == '\r';
    if (problem == 0 && (length == 0 || length == size)) {
        problem = -EINVAL;
    }
    return problem != 0 ? problem : (ssize_t)length;
}

static int make_core(struct bs_client *client, char *error, size_t error_size) {
    char password[PASSWORD_MAX + 1] = "";
    struct cg_client_options options = {
        .struct_size = sizeof(options),
        .mode = CG_CLIENT_FOREIGN_LOOP,
        .mds = client->mds,
        .owner = client->owner,
        .log = log_line,
    };
    if (client->password_file != NULL) {
        ssize_t length = read_password(client->password_file, password, PASSWORD_MAX);
        if (length < 0) {
            snprintf(error, error_size, "password-file=%s: %s", client->password_file,
                     length == -EINVAL ? "its first line must hold the password"
                                       : strerror((int)-length));
            return (int)length;
        }
        password[length] = '\0';
        options.root_password = password;
    }
    int result = cg_client_create(&options, &client->core);
    explicit_bzero(password, sizeof(password));
    if (result == -EINVAL) {
        snprintf(error, error_size,
                 "mds=%s or owner=%s makes no sense: mds is HOST:PORT, several separated by |",
                 client->mds, client->owner);
    } else if (result != 0) {
        snprintf(error, error_size, "cannot start the IO core: %s", strerror(-result));
    }
    return result;
}

static int attach(struct bs_client *client, char *error, size_t error_size) {
    client->fd = cg_client_fd(client->core);
    int result =
        client->fd >= 0 ? tgt_event_add(client->fd, EPOLLIN, on_readable, client) : client->fd;
    if (result != 0) {
        snprintf(error, error_size, "tgtd's event loop does not take the IO core's descriptor");
        cg_client_destroy(client->core);
        return -EIO;
    }
    tgt_init_sched_event(&client->turn, on_turn, client);
    return 0;
}

static void free_client(struct bs_client *client) {
    free(client->mds);
    free(client->owner);
    free(client->password_file);
    free(client);
}

static bool same(const char *a, const char *b) {
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static struct bs_client *find(const struct bs_options *options) {
    CG_LIST_FOREACH (node, &clients) {
        struct bs_client *client = CG_CONTAINER_OF(node, struct bs_client, node);
        if (same(client->mds, options->mds) && same(client->owner, options->owner) &&
            same(client->password_file, options->password_file)) {
            return client;
        }
    }
    return NULL;
}

static int make(const struct bs_options *options, struct bs_client **out, char *error,
                size_t error_size) {
    struct bs_client *client = calloc(1, sizeof(*client));
    if (client == NULL) {
        snprintf(error, error_size, "no memory");
        return -ENOMEM;
    }
    cg_list_init(&client->luns);
    client->mds = strdup(options->mds);
    client->owner = strdup(options->owner);
    client->password_file = options->password_file != NULL ? strdup(options->password_file) : NULL;
    int result = -ENOMEM;
    if (client->mds == NULL || client->owner == NULL ||
        (options->password_file != NULL && client->password_file == NULL)) {
        snprintf(error, error_size, "no memory");
    } else {
        result = make_core(client, error, error_size);
    }
    if (result == 0) {
        result = attach(client, error, error_size);
    }
    if (result != 0) {
        free_client(client);
        return result;
    }
    cg_list_push_back(&clients, &client->node);
    *out = client;
    return 0;
}

int bs_client_join(struct bs_lun *lun, char *error, size_t error_size) {
    struct bs_client *client = find(&lun->options);
    if (client == NULL) {
        int result = make(&lun->options, &client, error, error_size);
        if (result != 0) {
            return result;
        }
    }
    lun->client = client;
    cg_list_push_back(&client->luns, &lun->node);
    return 0;
}

void bs_client_leave(struct bs_lun *lun) {
    struct bs_client *client = lun->client;
    if (client == NULL) {
        return;
    }
    lun->client = NULL;
    cg_list_remove(&lun->node);
    if (!cg_list_empty(&client->luns)) {
        return;
    }
    cg_list_remove(&client->node);
    tgt_remove_sched_event(&client->turn);
    tgt_event_del(client->fd);
    cg_client_destroy(client->core);
    free_client(client);
}
