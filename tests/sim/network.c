// SPDX-License-Identifier: BSD-3-Clause
//
// Messages are lost, doubled, delayed, and overtake one another; links are cut in one direction or
// both. Clients reach every server: a leader that lost its followers still hears them.
#include "sim.h"

struct sim_mail *sim_compose(struct sim *sim) {
    uint32_t number = sim->mail_free;
    if (number == SIM_MESSAGES) {
        sim_fail(sim, "the simulator's network is full");
    }
    struct sim_mail *mail = &sim->mail[number];
    sim->mail_free = mail->next_free;
    return mail;
}

static void release(struct sim *sim, struct sim_mail *mail) {
    mail->next_free = sim->mail_free;
    sim->mail_free = (uint32_t)(mail - sim->mail);
}

static bool chance(struct sim *sim, uint32_t ppm) {
    return sim_below(sim, 1000000) < ppm;
}

static void schedule(struct sim *sim, struct sim_mail *mail) {
    uint64_t delay = sim_spread(sim, sim->profile.delay_ns);
    if (!sim->calm && chance(sim, sim->profile.late_ppm)) {
        delay += sim_below(sim, 6 * sim->profile.election_ns);
    }
    sim_push(sim, sim->now + delay, SIM_DELIVER, 0, (uint32_t)(mail - sim->mail));
}

void sim_send(struct sim *sim, struct sim_mail *mail) {
    bool severed = sim->cut[mail->from][mail->to];
    if (severed || (!sim->calm && chance(sim, sim->profile.loss_ppm))) {
        release(sim, mail);
        return;
    }
    if (!sim->calm && chance(sim, sim->profile.copy_ppm) && sim->mail_free != SIM_MESSAGES) {
        struct sim_mail *copy = sim_compose(sim);
        *copy = *mail;
        schedule(sim, copy);
    }
    schedule(sim, mail);
}

void sim_deliver(struct sim *sim, uint32_t number) {
    struct sim_mail *mail = &sim->mail[number];
    struct sim_node *node = &sim->node[mail->to];
    if (mail->kind == SIM_REPLY) {
        sim_client_reply(sim, mail);
    } else if (node->up && node->paused_until > sim->now) {
        sim_push(sim, node->paused_until, SIM_DELIVER, 0, number); // in its socket
        return;
    } else if (node->up && !sim->cut[mail->from][mail->to]) {
        sim_node_receive(sim, node, mail);
    }
    release(sim, mail);
}
