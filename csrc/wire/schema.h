/* Inside wire: what each message consists of, one table for both codecs. */
#ifndef ENCL_WIRE_SCHEMA_H
#define ENCL_WIRE_SCHEMA_H

#include "wire/wire.h"

typedef enum encl_field {
    ENCL_F_ID,
    ENCL_F_PAYLOAD,
    ENCL_F_HALF,
    ENCL_F_DATA,
    ENCL_F_CONTROL_NONCE,
    ENCL_F_MESSAGE,
    ENCL_F_SUCCESS,
    ENCL_F_SIGNATURE,
    ENCL_F_NONCE,
    ENCL_F_COUNT_
} encl_field;

#define ENCL_MSG_FIELDS 2
/* The fields beside "type", in the order in which they are sent. */
typedef struct encl_layout {
    bool allowed;
    size_t count;
    encl_field fields[ENCL_MSG_FIELDS];
} encl_layout;

/* NULL where a message of that type does not go in that direction. */
const encl_layout *encl_layout_of(encl_msg_type type, encl_direction direction);
bool encl_layout_has(const encl_layout *layout, encl_field field);
/* A literal's length is known at the table: keys are compared for every message. */
encl_slice encl_field_name(encl_field field);
encl_slice encl_half_name(encl_half half);
const char *encl_direction_name(encl_direction direction);

#endif
