// SPDX-License-Identifier: BSD-3-Clause
//
// Fuzzing of the incremental parser. The input's first bytes choose how the rest is cut into pieces
// and what is guessed; the same bytes fed all at once and without guesses must give the same frames
// and the same end. Built for libFuzzer with -Dfuzz=true (clang), and always as a plain program
// that runs the corpus files named on its command line.
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/list.h"
#include "rpc/receiver.h"

#define MESSAGE_MAX (1U << 18)
#define PLACE_MAX   (1U << 16) // longer attachments are thrown away

struct outcome {
    uint64_t hash;
    unsigned frames;
    int status;
};

struct subject {
    struct cg_receiver receiver;
    struct outcome outcome;
    const uint8_t *choices;
    size_t choice_count;
    size_t choice;
    uint8_t *place;
    struct iovec iov;
    uint8_t *guess_places[4];
    struct iovec guess_iov[4];
};

static uint8_t choose(struct subject *subject) {
    return subject->choice_count == 0 ? 0
                                      : subject->choices[subject->choice++ % subject->choice_count];
}

static void mix(struct outcome *outcome, const void *data, size_t length) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < length; i++) {
        outcome->hash = (outcome->hash ^ bytes[i]) * UINT64_C(1099511628211);
    }
}

static int on_begin(struct cg_receiver *receiver, struct cg_receiver_frame *frame,
                    struct cg_receiver_target *target) {
    struct subject *subject = CG_CONTAINER_OF(receiver, struct subject, receiver);
    if (frame->attachment_length > 0 && frame->attachment_length <= PLACE_MAX) {
        struct iovec *guessed = frame->guess;
        if (guessed != NULL) {
            subject->iov = *guessed;
            target->in_place = true;
        } else {
            subject->place = malloc(frame->attachment_length);
            subject->iov = (struct iovec){subject->place, frame->attachment_length};
        }
        target->iov = &subject->iov;
        target->iovcnt = 1;
    }
    return 0;
}

static int on_end(struct cg_receiver *receiver, struct cg_receiver_frame *frame) {
    struct subject *subject = CG_CONTAINER_OF(receiver, struct subject, receiver);
    struct outcome *outcome = &subject->outcome;
    outcome->frames++;
    mix(outcome, &frame->meta.correlation_id, sizeof(frame->meta.correlation_id));
    mix(outcome, frame->meta.service, frame->meta.service_length);
    mix(outcome, frame->meta.error_text, frame->meta.error_text_length);
    mix(outcome, frame->message, frame->message_length);
    if (frame->attachment_length > 0 && frame->attachment_length <= PLACE_MAX) {
        mix(outcome, subject->iov.iov_base, frame->attachment_length);
        free(subject->place);
        subject->place = NULL;
    }
    return 0;
}

static void drop_guesses(struct subject *subject) {
    for (unsigned i = 0; i < 4; i++) {
        free(subject->guess_places[i]);
        subject->guess_places[i] = NULL;
    }
}

static unsigned on_guess(struct cg_receiver *receiver, struct cg_receiver_guess *out,
                         unsigned max) {
    struct subject *subject = CG_CONTAINER_OF(receiver, struct subject, receiver);
    // An attachment that is being received into a guessed place keeps all of them.
    if (max < 4 || subject->choice_count == 0 || receiver->in_attachment) {
        return 0;
    }
    drop_guesses(subject);
    unsigned count = choose(subject) % 5;
    for (unsigned i = 0; i < count; i++) {
        uint32_t length = choose(subject);
        subject->guess_places[i] = malloc(length + 1);
        subject->guess_iov[i] = (struct iovec){subject->guess_places[i], length};
        out[i] = (struct cg_receiver_guess){
            .cookie = &subject->guess_iov[i],
            .head_length = CG_FRAME_HEADER_SIZE + 1 + choose(subject) % 100,
            .attachment_length = length,
            .iov = &subject->guess_iov[i],
            .iovcnt = length > 0,
        };
    }
    return count;
}

static bool on_confirm(struct cg_receiver *receiver, const struct cg_receiver_frame *frame,
                       const struct cg_receiver_guess *guess) {
    (void)frame;
    (void)guess;
    return (choose(CG_CONTAINER_OF(receiver, struct subject, receiver)) & 1) == 0;
}

static const struct cg_receiver_ops ops = {on_begin, on_end, on_guess, on_confirm, NULL};

static struct outcome run(const uint8_t *choices, size_t choice_count, const uint8_t *data,
                          size_t length) {
    struct subject subject = {.choices = choices, .choice_count = choice_count};
    if (cg_receiver_init(&subject.receiver, &ops, MESSAGE_MAX) < 0) {
        abort();
    }
    size_t at = 0;
    while (at < length && subject.outcome.status == 0) {
        size_t piece = length - at;
        if (choice_count > 0) {
            size_t wanted = 1 + (size_t)choose(&subject) * (1 + (choose(&subject) & 7));
            piece = wanted < piece ? wanted : piece;
        }
        subject.outcome.status = cg_receiver_feed(&subject.receiver, data + at, piece);
        at += piece;
    }
    free(subject.place);
    drop_guesses(&subject);
    cg_receiver_free(&subject.receiver);
    return subject.outcome;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 16) {
        return 0;
    }
    struct outcome whole = run(NULL, 0, data + 16, size - 16);
    struct outcome pieces = run(data, 16, data + 16, size - 16);
    if (whole.frames != pieces.frames || whole.hash != pieces.hash ||
        whole.status != pieces.status) {
        fprintf(stderr, "cut into pieces: %u frames, status %d; whole: %u frames, status %d\n",
                pieces.frames, pieces.status, whole.frames, whole.status);
        abort();
    }
    return 0;
}

#ifdef CORPUS_RUNNER

static int run_file(const char *path) {
    static uint8_t data[1 << 20];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    size_t n = fread(data, 1, sizeof(data), file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, n);
    return 0;
}

// Every file as it is, and then with each of its bytes damaged in turn.
static int run_damaged(const char *path) {
    static uint8_t data[1 << 20];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    size_t n = fread(data, 1, sizeof(data), file);
    fclose(file);
    for (size_t i = 0; i < n && i < 2048; i++) {
        static const uint8_t damage[] = {0x01, 0x80, 0xff};
        for (size_t j = 0; j < sizeof(damage); j++) {
            data[i] ^= damage[j];
            LLVMFuzzerTestOneInput(data, n);
            data[i] ^= damage[j];
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (run_file(argv[i]) != 0 || run_damaged(argv[i]) != 0) {
            return 1;
        }
    }
    if (argc < 2) {
        fprintf(stderr, "usage: %s FILE...\n", argv[0]);
        return 2;
    }
    return 0;
}

#endif
