// SPDX-License-Identifier: GPL-2.0-only
#include "fake_gateways.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "frontends/tgt/client.h"

enum { VOLUMES = 64 };

struct cg_volume {
    bool used;
    int gateway;
    uint64_t epoch; // 0: read-only
    bool closing;
    struct cg_state_call *follow;
    uint64_t acts_by; // of its last FOLLOW
    bool follows;
    struct cg_state_call *set;
    bool applied; // `set` is kept and waits for the followers
};

struct fake_gateway fake_gateways[GATEWAYS];
struct fake_command fake_commands[COMMANDS];
uint64_t fake_epoch;
uint64_t fake_revision;

static struct cg_volume volumes[VOLUMES];
static uint8_t kept[CG_STATE_MAX];
static uint32_t kept_length;
static bool mds_keeps;
static bool running[GATEWAYS];
static uint64_t seed;

struct opening {
    bool used;
    bool to_write;
    cg_open_done *done;
    void *user;
};
static struct opening openings[GATEWAYS];

uint32_t fake_random(uint32_t below) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)((seed >> 11) % below);
}

// --- The IO core

static struct cg_volume *new_volume(int gateway, bool to_write) {
    for (unsigned i = 0; i < VOLUMES; i++) {
        if (volumes[i].used)
            continue;
        volumes[i] = (struct cg_volume){.used = true, .gateway = gateway};
        if (to_write)
            volumes[i].epoch = ++fake_epoch;
        return &volumes[i];
    }
    fail_msg("too many volumes are open");
    return NULL;
}

static bool fenced(const struct cg_volume *volume) {
    return volume->epoch != 0 && volume->epoch != fake_epoch;
}

// What FOLLOW has to tell now; 1: nothing yet.
static int follow_result(const struct cg_volume *volume) {
    if (volume->closing)
        return -ESHUTDOWN;
    if (!mds_keeps)
        return -ENOTSUP;
    if (fenced(volume))
        return -ESTALE;
    return volume->follow->revision_known != fake_revision ? 0 : 1;
}

static bool everybody_acts_by(uint64_t revision, const struct cg_volume *but) {
    for (unsigned i = 0; i < VOLUMES; i++) {
        const struct cg_volume *one = &volumes[i];
        if (one->used && one != but && one->follows && !one->closing && !fenced(one) &&
            one->acts_by < revision)
            return false;
    }
    return true;
}

static void tell(struct cg_state_call *call) {
    assert_true(call->capacity >= kept_length);
    memcpy(call->buffer, kept, kept_length);
    call->buffer_length = kept_length;
    call->revision = fake_revision;
}

void cg_state_submit(struct cg_volume *volume, struct cg_state_call *call) {
    assert_true(volume->used);
    if (call->op == CG_STATE_FOLLOW) {
        assert_null(volume->follow);
        volume->follow = call;
        volume->follows = mds_keeps;
        volume->acts_by = call->revision_known == CG_STATE_UNKNOWN ? 0 : call->revision_known;
    } else {
        assert_null(volume->set);
        volume->set = call;
        volume->applied = false;
    }
}

// IO that was let through before this revision, which forbids it, must have ended; where the volume
// was taken away it fails anyway.
static void check_io(int gateway, const reservation_state *state, uint64_t revision) {
    for (unsigned i = 0; i < COMMANDS; i++) {
        const struct fake_command *one = &fake_commands[i];
        if (!one->used || one->command == NULL || !one->io || one->gateway != gateway ||
            one->began_revision >= revision || one->volume->closing || fenced(one->volume))
            continue;
        char name[RESERVATION_NAME_SIZE];
        struct reservation_nexus nexus;
        assert_true(lun_state_nexus(fake_state(gateway), &one->cmd, name, &nexus));
        assert_true(reservation_allows(state, &nexus, one->cdb));
    }
}

static void check_acknowledged(const struct cg_volume *volume, const struct cg_state_call *call) {
    static lun_shared_state state;
    assert_true(lun_state_decode(call->data, call->length, &state));
    for (int i = 0; i < GATEWAYS; i++) {
        if (!running[i] || i == volume->gateway)
            continue;
        check_io(i, &state.reservations, call->revision);
        const struct lun_state *other = fake_state(i);
        const struct cg_volume *its = fake_gateways[i].lun.volume;
        if (other->known && its != NULL && !fenced(its))
            assert_true(other->revision >= call->revision);
    }
}

static void finish_set(struct cg_volume *volume, int result) {
    struct cg_state_call *call = volume->set;
    if (result == 0 && (call->flags & CG_STATE_NO_WAIT) == 0)
        check_acknowledged(volume, call);
    volume->set = NULL;
    call->result = result;
    call->done(call);
}

static int set_result(const struct cg_volume *volume) {
    const struct cg_state_call *call = volume->set;
    if (volume->applied && (call->flags & CG_STATE_NO_WAIT) != 0)
        return 0;
    if (volume->applied)
        return everybody_acts_by(call->revision, volume) ? 0 : 1;
    if (volume->closing)
        return -ESHUTDOWN;
    // The MDS goes by the epoch that a change names; one that names none it takes from a fenced
    // volume too.
    if (call->epoch != 0 && call->epoch != fake_epoch)
        return -ESTALE;
    return call->revision_known == fake_revision ? 2 : -EAGAIN;
}

static bool step_set(struct cg_volume *volume) {
    struct cg_state_call *call = volume->set;
    int result = call == NULL ? 1 : set_result(volume);
    if (result == 1)
        return false;
    if (result == 2) {
        memcpy(kept, call->data, call->length);
        kept_length = call->length;
        call->revision = ++fake_revision;
        volume->applied = true;
        return true;
    }
    if (result == -EAGAIN)
        tell(call);
    finish_set(volume, result);
    return true;
}

static bool step_follow(struct cg_volume *volume) {
    struct cg_state_call *call = volume->follow;
    int result = call == NULL ? 1 : follow_result(volume);
    if (result == 1)
        return false;
    if (result == 0)
        tell(call);
    volume->follow = NULL;
    call->result = result;
    call->done(call);
    return true;
}

int cg_volume_open_start(struct cg_client *client, const struct cg_volume_options *options,
                         cg_open_done *done, void *user) {
    int gateway = (int)(uintptr_t)client - 1;
    assert_false(openings[gateway].used);
    openings[gateway] =
        (struct opening){true, (options->flags & CG_OPEN_READ_ONLY) == 0, done, user};
    return 0;
}

void cg_volume_open_cancel(struct cg_client *client, const void *user) {
    struct opening *opening = &openings[(int)(uintptr_t)client - 1];
    assert_true(opening->used && opening->user == user);
    opening->used = false;
    opening->done(opening->user, -ECANCELED, NULL, "canceled");
}

static bool step_open(int gateway) {
    struct opening *opening = &openings[gateway];
    if (!opening->used)
        return false;
    opening->used = false;
    opening->done(opening->user, 0, new_volume(gateway, opening->to_write), NULL);
    return true;
}

int cg_volume_close_start(struct cg_volume *volume, void (*done)(void *user), void *user) {
    (void)done;
    (void)user;
    volume->closing = true;
    return 0;
}

void cg_volume_close(struct cg_volume *volume) {
    if (volume == NULL)
        return;
    volume->closing = true;
    while (step_set(volume) || step_follow(volume)) {
    }
    // One that waited for other followers: the connection ends first.
    if (volume->set != NULL)
        finish_set(volume, -ESHUTDOWN);
    volume->used = false;
}

void cg_volume_info(const struct cg_volume *volume, struct cg_volume_info *out) {
    *out = (struct cg_volume_info){.size = 1 << 20, .epoch = volume->epoch};
}

int cg_client_fd(struct cg_client *client) {
    (void)client;
    return -1;
}

int cg_client_progress(struct cg_client *client) {
    int gateway = (int)(uintptr_t)client - 1;
    // Nothing happens at the start but what the test picks.
    if (!running[gateway])
        return -EIO;
    for (unsigned i = 0; i < VOLUMES; i++) {
        if (volumes[i].used && volumes[i].gateway == gateway && volumes[i].closing)
            cg_volume_close(&volumes[i]);
    }
    return 0;
}

// --- The module

const struct bs_extension *const bs_extensions[] = {&lun_state_extension, NULL};

struct cg_client *bs_client_core(struct bs_client *client) {
    return (struct cg_client *)(void *)client;
}

void bs_client_kick(struct bs_client *client) {
    (void)client;
}

void bs_lun_log(struct bs_lun *lun, bool error, const char *format, ...) {
    (void)lun;
    (void)error;
    (void)format;
}

struct cg_volume *bs_lun_adopt(struct bs_lun *lun, struct cg_volume *volume) {
    struct cg_volume *before = lun->volume;
    lun->volume = volume;
    if (volume != NULL)
        cg_volume_info(volume, &lun->info);
    return before;
}

static struct fake_command *of_cmd(struct scsi_cmd *cmd) {
    return CG_CONTAINER_OF(cmd, struct fake_command, cmd);
}

struct bs_command *bs_command_begin(struct bs_lun *lun, struct scsi_cmd *cmd) {
    struct cg_list *node = cg_list_pop_front(&lun->free_commands);
    if (node == NULL)
        return NULL;
    struct bs_command *command = CG_CONTAINER_OF(node, struct bs_command, node);
    memset(command, 0, sizeof(*command));
    cg_list_init(&command->node);
    command->lun = lun;
    command->cmd = cmd;
    command->deadline_ns = cg_now_ns() + lun->options.timeout_s * CG_NS_PER_S;
    cmd->state |= 1UL << TGT_COMMAND_ASYNC;
    return command;
}

void bs_command_end(struct bs_command *command, struct bs_status status) {
    struct fake_command *fake = of_cmd(command->cmd);
    if (fake->cdb[0] == 0x5f && status.status == SAM_GOOD)
        check_io(fake->gateway, &fake_state(fake->gateway)->now->reservations,
                 fake_state(fake->gateway)->revision);
    fake->done = true;
    fake->status = status.status;
    fake->code = status.code;
    fake->command = NULL;
    command->cmd = NULL;
    cg_list_push_front(&command->lun->free_commands, &command->node);
}

uint64_t bs_command_remaining_ms(const struct bs_command *command) {
    (void)command;
    return 1000;
}

int bs_finish(struct scsi_cmd *cmd, struct bs_status status) {
    of_cmd(cmd)->code = status.code;
    return status.status;
}

int bs_reply(struct scsi_cmd *cmd, const void *data, uint32_t length, uint32_t allocation) {
    (void)cmd;
    (void)data;
    (void)length;
    (void)allocation;
    return SAM_GOOD;
}

// --- tgtd

static struct fake_gateway *of_lu(struct scsi_lu *lu) {
    return CG_CONTAINER_OF(lu, struct fake_gateway, lu);
}

void ua_sense_add_it_nexus(uint64_t nexus_id, struct scsi_lu *lu, uint16_t code) {
    of_lu(lu)->attentions[nexus_id - 1]++;
    of_lu(lu)->last_attention[nexus_id - 1] = code;
}

void ua_sense_add_other_it_nexus(uint64_t nexus_id, struct scsi_lu *lu, uint16_t code) {
    for (uint64_t id = 1; id <= SESSIONS; id++) {
        if (id != nexus_id)
            ua_sense_add_it_nexus(id, lu, code);
    }
}

void bs_lun_attention(struct bs_lun *lun, uint16_t code) {
    ua_sense_add_other_it_nexus(UINT64_MAX, lun->lu, code);
}

int iscsi_transportid(int tid, uint64_t nexus_id, char *buffer, int size);

// As tgtd writes it: the ISID is six bytes behind the name's 0. Session n has the same initiator on
// every gateway.
int iscsi_transportid(int tid, uint64_t nexus_id, char *buffer, int size) {
    (void)tid;
    memset(buffer, 0, (size_t)size);
    buffer[0] = 0x45;
    int used = snprintf(buffer + 4, 32, "iqn.2026-01.test:%llu", (unsigned long long)nexus_id);
    memcpy(buffer + 4 + used + 1, ",i,0x", 5);
    buffer[4 + used + 1 + 5 + 5] = (char)nexus_id;
    buffer[3] = (char)((used + 1 + 5 + 7 + 3) & ~3);
    return 4 + buffer[3];
}

// --- The world

void fake_begin(uint64_t first, bool keeps_state) {
    seed = first * 0x9e3779b97f4a7c15ULL + 1;
    mds_keeps = keeps_state;
    fake_epoch = 0;
    fake_revision = 0;
    kept_length = 0;
    memset(volumes, 0, sizeof(volumes));
    memset(fake_commands, 0, sizeof(fake_commands));
    memset(openings, 0, sizeof(openings));
    memset(running, 0, sizeof(running));
}

void fake_end(void) {
    for (int i = 0; i < GATEWAYS; i++) {
        if (running[i])
            fake_stop(i);
    }
    for (unsigned i = 0; i < VOLUMES; i++)
        assert_true(!volumes[i].used || volumes[i].closing);
}

void fake_start(int number, bool standby) {
    struct fake_gateway *gateway = &fake_gateways[number];
    memset(gateway, 0, sizeof(*gateway));
    snprintf(gateway->name, sizeof(gateway->name), "gw%d", number);
    struct bs_lun *lun = &gateway->lun;
    lun->lu = &gateway->lu;
    lun->name = gateway->name;
    lun->client = (struct bs_client *)(uintptr_t)(number + 1);
    lun->options.gateway = gateway->name;
    lun->options.group = (uint16_t)(number + 1);
    lun->options.port = (uint16_t)(number + 1);
    lun->options.timeout_s = 25;
    lun->options.standby = standby;
    lun->commands = calloc(BS_COMMANDS_MAX, sizeof(*lun->commands));
    assert_non_null(lun->commands);
    cg_list_init(&lun->free_commands);
    for (unsigned i = 0; i < BS_COMMANDS_MAX; i++)
        cg_list_push_back(&lun->free_commands, &lun->commands[i].node);
    gateway->lu.target = &gateway->target;
    cg_list_init(&gateway->lu.nexuses);
    for (unsigned i = 0; i < SESSIONS; i++) {
        gateway->nexus[i].nexus_id = i + 1;
        cg_list_push_back(&gateway->lu.nexuses, &gateway->nexus[i].lu_siblings);
    }
    (void)bs_lun_adopt(lun, new_volume(number, !standby));
    assert_int_equal(lun_state_extension.start(lun), 0);
    running[number] = true;
}

bool fake_runs(int gateway) {
    return running[gateway];
}

struct lun_state *fake_state(int gateway) {
    return lun_state_of(&fake_gateways[gateway].lun);
}

// The core calls it; here IO ends by end_io.
static void io_ended(struct bs_command *command) {
    (void)command;
    fail();
}

static void end_io(struct fake_command *fake) {
    struct bs_command *command = fake->command;
    struct bs_status status = BS_GOOD;
    int result = fenced(fake->volume) ? -ESTALE : 0;
    if (result != 0 && fake->volume->used)
        assert_true(lun_state_extension.failed(command->lun, result, &status));
    bs_command_end(command, status);
}

void fake_stop(int gateway) {
    // tgtd does not remove a unit with commands outstanding.
    for (unsigned i = 0; i < COMMANDS; i++) {
        struct fake_command *one = &fake_commands[i];
        if (one->used && one->gateway == gateway && one->command != NULL)
            end_io(one);
    }
    lun_state_extension.stop(&fake_gateways[gateway].lun);
    free(fake_gateways[gateway].lun.commands);
    running[gateway] = false;
    for (unsigned i = 0; i < VOLUMES; i++) {
        if (volumes[i].gateway == gateway)
            volumes[i].used = false;
    }
}

struct fake_command *fake_send(int gateway, int session, const uint8_t *cdb, size_t cdb_length,
                               const uint8_t *data, size_t length) {
    struct fake_command *fake = NULL;
    for (unsigned i = 0; i < COMMANDS && fake == NULL; i++) {
        if (!fake_commands[i].used)
            fake = &fake_commands[i];
    }
    if (fake == NULL)
        return NULL;
    memset(fake, 0, sizeof(*fake));
    fake->used = true;
    fake->gateway = gateway;
    fake->session = session;
    memcpy(fake->cdb, cdb, cdb_length);
    if (length > 0)
        memcpy(fake->data, data, length);
    struct scsi_cmd *cmd = &fake->cmd;
    cmd->target = &fake_gateways[gateway].target;
    cmd->nexus_id = (uint64_t)session + 1;
    cmd->cdb = fake->cdb;
    cmd->cdb_length = (int32_t)cdb_length;
    cmd->out.buffer = (uint64_t)(uintptr_t)fake->data;
    cmd->out.length = (uint32_t)length;
    struct bs_lun *lun = &fake_gateways[gateway].lun;
    int status = lun_state_extension.admit(lun, cmd, NULL);
    if (status == 0) {
        for (unsigned i = 0; i < lun_state_extension.opcode_count; i++) {
            const struct bs_opcode *op = &lun_state_extension.opcodes[i];
            if (op->opcode != cdb[0] ||
                (op->action != BS_NO_ACTION && op->action != (cdb[1] & 0x1f)))
                continue;
            status = op->perform(lun, cmd);
            // An asynchronous one ends by bs_command_end.
            if ((cmd->state & 1UL << TGT_COMMAND_ASYNC) == 0) {
                fake->done = true;
                fake->status = (uint8_t)status;
            }
            return fake;
        }
        fake->io = true;
        fake->command = bs_command_begin(lun, cmd);
        assert_non_null(fake->command);
        fake->command->next = io_ended;
        fake->volume = lun->volume;
        fake->began_revision = lun_state_of(lun)->revision;
        return fake;
    }
    fake->done = true;
    fake->status = (uint8_t)status;
    return fake;
}

struct fake_command *fake_reserve_out(int gateway, int session, uint8_t action, uint8_t type,
                                      uint64_t key, uint64_t action_key) {
    uint8_t cdb[10] = {0x5f, action, type, 0, 0, 0, 0, 0, 24};
    uint8_t list[24] = {0};
    for (int i = 0; i < 8; i++) {
        list[i] = (uint8_t)(key >> (56 - 8 * i));
        list[8 + i] = (uint8_t)(action_key >> (56 - 8 * i));
    }
    return fake_send(gateway, session, cdb, sizeof(cdb), list, sizeof(list));
}

struct fake_command *fake_io(int gateway, int session, bool write) {
    uint8_t cdb[16] = {write ? 0x8a : 0x88};
    return fake_send(gateway, session, cdb, sizeof(cdb), NULL, 0);
}

struct fake_command *fake_set_groups(int gateway, int session) {
    uint8_t cdb[12] = {0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8};
    uint8_t list[8] = {0, 0, 0, 0, 0, 0, 0, (uint8_t)(gateway + 1)};
    return fake_send(gateway, session, cdb, sizeof(cdb), list, sizeof(list));
}

void fake_forget(struct fake_command *command) {
    assert_true(command->done);
    command->used = false;
}

static bool has_io(const struct cg_volume *volume) {
    for (unsigned i = 0; i < COMMANDS; i++) {
        if (fake_commands[i].used && fake_commands[i].command != NULL && fake_commands[i].io &&
            fake_commands[i].volume == volume)
            return true;
    }
    return false;
}

static bool step_command(struct fake_command *fake) {
    if (!fake->used || fake->command == NULL)
        return false;
    end_io(fake);
    return true;
}

// All that can happen, numbered: volumes' calls, openings, closings, IO.
static bool step_number(unsigned number, bool with_io) {
    if (number < VOLUMES)
        return volumes[number].used && step_follow(&volumes[number]);
    number -= VOLUMES;
    if (number < VOLUMES)
        return volumes[number].used && step_set(&volumes[number]);
    number -= VOLUMES;
    if (number < VOLUMES) {
        struct cg_volume *volume = &volumes[number];
        bool ends = volume->used && volume->closing && volume->follow == NULL &&
                    volume->set == NULL && !has_io(volume);
        volume->used = volume->used && !ends;
        return ends;
    }
    number -= VOLUMES;
    if (number < GATEWAYS)
        return step_open((int)number);
    number -= GATEWAYS;
    return with_io && step_command(&fake_commands[number]);
}

static bool step(bool with_io) {
    unsigned total = 3 * VOLUMES + GATEWAYS + COMMANDS;
    unsigned first = fake_random(total);
    for (unsigned i = 0; i < total; i++) {
        if (!step_number((first + i) % total, with_io))
            continue;
        for (int gateway = 0; gateway < GATEWAYS; gateway++) {
            if (running[gateway])
                lun_state_extension.progress(&fake_gateways[gateway].lun);
        }
        return true;
    }
    return false;
}

bool fake_step(void) {
    return step(true);
}

void fake_settle(void) {
    for (unsigned i = 0; step(true); i++)
        assert_true(i < 100000);
}

void fake_settle_without_io(void) {
    for (unsigned i = 0; step(false); i++)
        assert_true(i < 100000);
}

const lun_shared_state *fake_kept(void) {
    static lun_shared_state state;
    assert_true(lun_state_decode(kept, kept_length, &state));
    return &state;
}
