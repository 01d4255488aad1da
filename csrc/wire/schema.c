/* Decides which messages there are, which way each may go, and of which fields it consists. Tables
 * alone: calls nothing. */
#include "wire/schema.h"

#define TEXT(literal)                                                                              \
    { (const uint8_t *)(literal), sizeof(literal) - 1 }

static const char *const type_names[ENCL_MSG_COUNT_] = {
    [ENCL_MSG_REQUEST_ATTESTATION] = "RequestAttestation",
    [ENCL_MSG_DATA] = "Data",
    [ENCL_MSG_OPEN_STREAM] = "OpenStream",
    [ENCL_MSG_STREAM_DATA] = "StreamData",
    [ENCL_MSG_STREAM_CLOSE] = "StreamClose",
    [ENCL_MSG_GET_CONTROL_NONCE] = "GetControlNonce",
    [ENCL_MSG_CONTROL] = "Control",
    [ENCL_MSG_ATTESTATION] = "Attestation",
    [ENCL_MSG_ERROR] = "Error",
    [ENCL_MSG_CONTROL_RESULT] = "ControlResult",
    [ENCL_MSG_CONTROL_NONCE] = "ControlNonce",
};

static const encl_slice field_names[ENCL_F_COUNT_] = {
    [ENCL_F_ID] = TEXT("id"),
    [ENCL_F_PAYLOAD] = TEXT("payload"),
    [ENCL_F_HALF] = TEXT("half"),
    [ENCL_F_DATA] = TEXT("data"),
    [ENCL_F_CONTROL_NONCE] = TEXT("control_nonce"),
    [ENCL_F_MESSAGE] = TEXT("message"),
    [ENCL_F_SUCCESS] = TEXT("success"),
    [ENCL_F_SIGNATURE] = TEXT("signature"),
    [ENCL_F_NONCE] = TEXT("nonce"),
};

static const encl_slice half_names[] = {
    [ENCL_HALF_NONE] = {NULL, 0},
    [ENCL_HALF_WRITE] = TEXT("Write"),
    [ENCL_HALF_BOTH] = TEXT("Both"),
};

static const encl_layout layouts[2][ENCL_MSG_COUNT_] = {
    [ENCL_TO_SERVER] =
        {
            [ENCL_MSG_REQUEST_ATTESTATION] = {true, 0, {0}},
            [ENCL_MSG_DATA] = {true, 2, {ENCL_F_ID, ENCL_F_PAYLOAD}},
            [ENCL_MSG_OPEN_STREAM] = {true, 2, {ENCL_F_ID, ENCL_F_PAYLOAD}},
            [ENCL_MSG_STREAM_DATA] = {true, 2, {ENCL_F_ID, ENCL_F_PAYLOAD}},
            [ENCL_MSG_STREAM_CLOSE] = {true, 2, {ENCL_F_ID, ENCL_F_HALF}},
            [ENCL_MSG_GET_CONTROL_NONCE] = {true, 0, {0}},
            [ENCL_MSG_CONTROL] = {true, 2, {ENCL_F_PAYLOAD, ENCL_F_SIGNATURE}},
        },
    [ENCL_TO_CLIENT] =
        {
            [ENCL_MSG_ATTESTATION] = {true, 2, {ENCL_F_DATA, ENCL_F_CONTROL_NONCE}},
            [ENCL_MSG_DATA] = {true, 2, {ENCL_F_ID, ENCL_F_PAYLOAD}},
            [ENCL_MSG_ERROR] = {true, 2, {ENCL_F_ID, ENCL_F_MESSAGE}},
            [ENCL_MSG_STREAM_DATA] = {true, 2, {ENCL_F_ID, ENCL_F_PAYLOAD}},
            [ENCL_MSG_STREAM_CLOSE] = {true, 1, {ENCL_F_ID}},
            [ENCL_MSG_CONTROL_RESULT] = {true, 2, {ENCL_F_SUCCESS, ENCL_F_MESSAGE}},
            [ENCL_MSG_CONTROL_NONCE] = {true, 1, {ENCL_F_NONCE}},
        },
};

const char *encl_msg_type_name(encl_msg_type type) {
    return (unsigned)type < ENCL_MSG_COUNT_ ? type_names[type] : "unknown";
}

const encl_layout *encl_layout_of(encl_msg_type type, encl_direction direction) {
    const encl_layout *layout;

    if ((unsigned)type >= ENCL_MSG_COUNT_ || (unsigned)direction > ENCL_TO_CLIENT) {
        return NULL;
    }
    layout = &layouts[direction][type];
    return layout->allowed ? layout : NULL;
}

bool encl_layout_has(const encl_layout *layout, encl_field field) {
    for (size_t i = 0; i < layout->count; i++) {
        if (layout->fields[i] == field) {
            return true;
        }
    }
    return false;
}

encl_slice encl_field_name(encl_field field) {
    return field_names[field];
}

encl_slice encl_half_name(encl_half half) {
    return (unsigned)half <= ENCL_HALF_BOTH ? half_names[half] : ENCL_SLICE_NONE;
}

const char *encl_direction_name(encl_direction direction) {
    return direction == ENCL_TO_SERVER ? "the server" : "the client";
}
