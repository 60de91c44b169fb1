// SPDX-License-Identifier: BSD-3-Clause
//
// What the files that know the metadata server's messages share.
#ifndef CG_VOLUME_MDS_WIRE_H
#define CG_VOLUME_MDS_WIRE_H

#include <pb.h>
#include <stdint.h>

#include "volume/mds.h"

// A string to be encoded; it stays valid until then.
pb_callback_t cg_mds_text_field(const char *text);

// mds_state_messages.c: cg_mds_send and cg_mds_decode for the volume's shared state.
int cg_mds_send_state(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                      const char *signature);
int cg_mds_decode_state(struct cg_mds_call *call, pb_istream_t *stream);

#endif
