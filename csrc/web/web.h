/* web: the client's side of net/net.h over a WebSocket that belongs to somebody else. A program in
 * a browser has no sockets: it is given a WebSocket by the page, which resolves, connects, does TLS
 * and frames. So this layer takes the place of net there (setup.py, ENCLAVIA_WEB), and channel
 * above it is the same. It knows messages, not records.
 *
 * Whoever has the WebSocket, its owner, tells a connection what has happened to it and fetches what
 * there is to do. There is no thread: every callback of net.h is made within a call of the owner's,
 * without any lock of this layer, and nothing here waits. Calls for one connection are made one
 * after another; other threads may send meanwhile. */
#ifndef ENCL_WEB_WEB_H
#define ENCL_WEB_WEB_H

#include "net/net.h"

/* As the frames of a connection with sockets are bounded. */
#define ENCL_WEB_MESSAGE_MAX ((size_t)16 * 1024 * 1024)

/* ---- what has happened to the WebSocket ---- */

/* It is open. */
void encl_web_opened(encl_conn *conn);
/* Bytes of binary messages, copied. Gives how many were taken: the rest, or all where reading is
 * held back, is the owner's to give again once encl_web_wants_reading says so. */
ENCL_MUST_USE size_t encl_web_received(encl_conn *conn, encl_slice bytes);
/* One text message. The protocol has none; a few are passed over, as on a socket. */
void encl_web_received_text(encl_conn *conn);
/* It has closed, or could not be opened. code: RFC 6455 section 7.4. The reason is the peer's, but
 * with code 1006 the owner's own: why it gave the connection up. */
void encl_web_closed(encl_conn *conn, uint16_t code, encl_slice reason);

/* ---- what there is to do ---- */

/* Once for the process: call() is called whenever there may be something new to do for a
 * connection's owner: a message to take, reading held back or wanted again, a WebSocket to close, a
 * timer for an earlier time. Any thread, with locks held, so it notes that and calls nothing of
 * this project. */
void encl_web_on_work(void (*call)(void));
/* Whether that has happened to this one since this was asked last. */
bool encl_web_had_work(encl_conn *conn);

/* The next message to send is len bytes; 0 where there is none. */
size_t encl_web_next(encl_conn *conn);
/* Moves that message into a block of its length (encl_web_next, with no other call in between).
 * False where it is not there any more: another thread has taken it, or ended the connection. */
ENCL_MUST_USE bool encl_web_take(encl_conn *conn, uint8_t *out, size_t len);
/* Whether encl_web_received takes anything. */
bool encl_web_wants_reading(encl_conn *conn);
/* Nothing is sent after what waits to be taken, which is at most what a queue holds. */
bool encl_web_is_closing(encl_conn *conn);
/* All is taken and nothing more comes: the WebSocket is to be closed, with this code and reason
 * (which is the connection's). */
bool encl_web_is_finished(encl_conn *conn, uint16_t *code, const char **reason);
/* Fires the timers that are due, of all connections of this one's loop. Nanoseconds until the next
 * one; -1 where there is none. */
int64_t encl_web_tick(encl_conn *conn);

#endif
