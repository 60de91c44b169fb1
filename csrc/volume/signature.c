// SPDX-License-Identifier: BSD-3-Clause
//
// nettle, because its licence lets the core be linked into tgtd (GPL-2.0-only).
#include "volume/signature.h"

#include <assert.h>
#include <inttypes.h>
#include <nettle/base64.h>
#include <nettle/hmac.h>
#include <stdio.h>
#include <string.h>

void cg_signature(const char *password, uint64_t date_us, const char *owner,
                  char out[CG_SIGNATURE_SIZE]) {
    char date[24];
    int date_length = snprintf(date, sizeof(date), "%" PRIu64 ":", date_us);
    struct hmac_sha256_ctx hmac;
    hmac_sha256_set_key(&hmac, strlen(password), (const uint8_t *)password);
    hmac_sha256_update(&hmac, (size_t)date_length, (const uint8_t *)date);
    hmac_sha256_update(&hmac, strlen(owner), (const uint8_t *)owner);
    uint8_t digest[SHA256_DIGEST_SIZE];
    hmac_sha256_digest(&hmac, sizeof(digest), digest);
    _Static_assert(BASE64_ENCODE_RAW_LENGTH(SHA256_DIGEST_SIZE) + 1 == CG_SIGNATURE_SIZE,
                   "a signature has a fixed length");
    base64_encode_raw(out, sizeof(digest), digest);
    out[CG_SIGNATURE_SIZE - 1] = '\0';
}
