/* DER (X.690) as a tree of values with one-byte tags. Strings that hold DER are opened too. */
#ifndef ENCL_FUZZ_DER_TREE_H
#define ENCL_FUZZ_DER_TREE_H

#include "mutate.h"

enum {
    DER_BOOLEAN = 0x01,
    DER_INTEGER = 0x02,
    DER_BIT_STRING = 0x03,
    DER_OCTET_STRING = 0x04,
    DER_OID = 0x06,
    DER_UTC_TIME = 0x17,
    DER_GENERALIZED_TIME = 0x18,
    DER_SEQUENCE = 0x30,
    DER_EXTENSIONS = 0xa3, /* of a certificate */
};

typedef enum der_length { DER_SHORTEST, DER_LONGER, DER_INDEFINITE, DER_WRONG } der_length;

typedef struct der_node {
    uint8_t tag;
    der_length length;
    bool open;        /* its content is child and what follows, not bytes */
    uint8_t prefix;   /* bytes of content before the first child: 1 in a bit string */
    encl_slice bytes; /* all of the content, as it was read */
    struct der_node *child, *next;
} der_node;

/* All of in is one value; NULL where it is not. */
der_node *der_parse(encl_slice in);
/* Empty where memory ends. */
encl_slice der_write(const der_node *n);
der_node *der_new(uint8_t tag, encl_slice bytes);
der_node *der_copy(const der_node *n);
der_node *der_at(const der_node *parent, size_t i);
/* In a certificate: what is signed; and there, the named part. NULL where it is missing. */
der_node *der_signed_part(const der_node *certificate);
typedef enum der_part { DER_ISSUER = 2, DER_VALIDITY, DER_SUBJECT, DER_KEY } der_part;
der_node *der_part_of(const der_node *certificate, der_part part);

#endif
