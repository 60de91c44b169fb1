// SPDX-License-Identifier: BSD-3-Clause
#ifndef CG_VOLUME_SIGNATURE_H
#define CG_VOLUME_SIGNATURE_H

#include <stdint.h>

#define CG_SIGNATURE_SIZE 45U // base64 of 32 bytes, and NUL

// CurveBS's proof of being root: base64(HMAC-SHA256(password, "<date_us>:<owner>")).
void cg_signature(const char *password, uint64_t date_us, const char *owner,
                  char out[CG_SIGNATURE_SIZE]);

#endif
