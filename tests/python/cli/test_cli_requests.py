"""``get``, ``post`` and the others: what is sent, what is printed, and when neither is."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import (
    BROKEN_PIPE,
    CANNOT_WRITE,
    HTTP_STATUS,
    OK,
    REFUSED,
    UNREACHABLE,
    USAGE,
    cli,
    ended,
    environment,
    started,
)
from support import answering, byte_enclave, eventually, ok

from enclavia.testing import LocalEnclave

if TYPE_CHECKING:
    from conftest import Place

METHODS = ["get", "head", "post", "put", "patch", "delete"]


def fields(head: bytes) -> list[bytes]:
    return head.split(b"\r\n")[1:-2]


@pytest.mark.parametrize("method", METHODS)
def test_each_method(place: Place, method: str) -> None:
    answered = cli(method, place.url("/a%20b?c=d"), *place.pins).expect(OK)
    assert place.heads[0].startswith(f"{method.upper()} /a%20b?c=d HTTP/1.1\r\n".encode())
    assert answered.err == ""
    assert answered.out == (b"HTTP/1.1 200 OK\nContent-Length: 2\n" if method == "head" else b"ok")


@pytest.mark.parametrize("method", METHODS)
def test_another_image_gets_nothing(place: Place, method: str) -> None:
    refused = cli(method, place.url("/"), "-H", "Authorization: Bearer secret", *place.other)
    refused.expect(REFUSED, "PcrMismatch: PCR0")
    assert refused.out == b""
    assert "secret" not in refused.err
    place.expect_untouched()


def test_an_unproven_enclave_gets_nothing(place: Place) -> None:
    cli("post", place.url("/"), "-d", "x", *place.pins[:2]).expect(REFUSED, "CertificateError: ")
    place.expect_untouched()


def test_a_debug_enclave_is_asked_for(tmp_path: Path) -> None:
    with byte_enclave(answering(ok()), mode="debug") as (enclave, server):
        pins = ["--pcrs", "-"]
        given = "".join(f"{k}: {v}\n" for k, v in enclave.pcrs.as_dict().items()).encode()
        cli("get", enclave.url + "/", *pins, given=given).expect(REFUSED)
        assert server.connections == []
        answered = cli("get", enclave.url + "/", "--debug-mode").expect(OK, "DebugModeWarning: ")
        assert answered.out == b"ok"


def test_a_path_of_the_named_enclave(place: Place) -> None:
    env = {"ENCLAVIA_URL": place.enclave.url}
    cli("get", "/one", *place.pins, env=env).expect(OK)
    cli("get", "/two", "--url", place.enclave.url, *place.pins).expect(OK)
    cli("get", "?three", *place.pins, env=env).expect(OK)
    cli("get", place.url("/four"), *place.pins, env={"ENCLAVIA_URL": "ws://127.0.0.1:9"}).expect(OK)
    asked = [head.split(b" ")[1] for head in place.heads]
    assert asked == [b"/one", b"/two", b"/?three", b"/four"]


def test_another_host_than_the_named_enclave(place: Place) -> None:
    foreign = cli("get", "https://elsewhere.example/x", "--url", place.enclave.url, *place.pins)
    foreign.expect(USAGE, "ForeignURL: ")
    place.expect_untouched()
    cli("get", "//elsewhere.example/x", "--url", place.enclave.url, *place.pins).expect(OK)
    assert place.heads[0].startswith(b"GET //elsewhere.example/x HTTP/1.1\r\n")


def test_headers(place: Place, tmp_path: Path) -> None:
    secret = tmp_path / "headers"
    secret.write_bytes(b"Authorization: Bearer s3cret\r\n\r\nX-Two: b\n")
    given = ["-H", "X-One: a", "-H", f"@{secret}", "-H", "X-Two: c", "-H", "User-Agent: mine"]
    answered = cli("get", place.url("/"), *given, *place.pins).expect(OK)
    found = fields(place.heads[0])
    for line in (b"X-One: a", b"Authorization: Bearer s3cret", b"X-Two: b", b"X-Two: c"):
        assert line in found
    assert b"User-Agent: mine" in found
    assert b"Accept-Encoding: identity" in found
    assert "s3cret" not in answered.err


def test_a_header_that_is_not_utf8_is_sent_as_it_is(place: Place) -> None:
    cli("get", place.url("/"), "-H", b"X-Bytes: a\xffb", *place.pins).expect(OK)
    assert b"X-Bytes: a\xffb" in fields(place.heads[0])


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("secret", "got one without a colon"),
        ("secret\nX: y", "characters that no header's name may have"),
        (": secret", "characters that no header's name may have"),
        ("Authorization: secret\r\nX: y", "got controls or line ends in that of Authorization"),
        ("X: secret\x1b[2J", "got controls or line ends in that of X"),
        ("@secret-file", "No such file"),
        ("@", "got an empty name"),
    ],
)
def test_headers_refused(place: Place, header: str, said: str) -> None:
    refused = cli("get", place.url("/"), "-H", header, *place.pins).expect(USAGE, said)
    assert "secret" not in refused.err.replace("secret-file", "")
    assert "\x1b" not in refused.err
    place.expect_untouched()


def test_a_secret_without_quotes_is_not_repeated(place: Place) -> None:
    given = ["get", place.url("/"), *place.pins, "-H", "Authorization:", "Bearer", "s3cret"]
    refused = cli(*given).expect(USAGE, "without quotes")
    assert "s3cret" not in refused.err
    assert "Bearer" not in refused.err


def test_a_huge_header_of_the_caller(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_bytes(b"X: " + b"s3cret" * 20_000)
    cli("get", place.url("/"), "-H", f"@{path}", *place.pins).expect(OK)
    assert len(place.heads[0]) > 120_000
    path.write_bytes(b"X: " + b"s3cret" * 200_000)
    refused = cli("get", place.url("/"), "-H", f"@{path}", *place.pins).expect(USAGE, "at most")
    assert "s3cret" not in refused.err


def test_bodies(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"\0\xff\r\n@")
    url = place.url("/")
    cli("post", url, "-d", "text\n", *place.pins).expect(OK)
    cli("post", url, "-d", b"\xff", *place.pins).expect(OK)
    cli("post", url, "-d", f"@{path}", *place.pins).expect(OK)
    cli("post", url, "-d", "-", *place.pins, given=b"piped").expect(OK)
    cli("put", url, "-d", "@-", *place.pins, given=b"").expect(OK)
    assert place.bodies == [b"text\n", b"\xff", b"\0\xff\r\n@", b"piped", b""]


def test_long_bodies_are_streamed(place: Place, tmp_path: Path) -> None:
    body = os.urandom(1024) * 3000
    path = tmp_path / "body"
    path.write_bytes(body)
    cli("post", place.url("/"), "-d", f"@{path}", *place.pins).expect(OK)
    cli("post", place.url("/"), "-d", "-", *place.pins, given=body).expect(OK)
    assert place.bodies == [body, body]
    assert b"Content-Length: %d" % len(body) in fields(place.heads[0])
    assert b"Transfer-Encoding: chunked" in fields(place.heads[1])


def test_json(place: Place) -> None:
    cli("post", place.url("/"), "--json", '{"a": [1]}', *place.pins).expect(OK)
    assert place.bodies == [b'{"a": [1]}']
    assert b"Content-Type: application/json" in fields(place.heads[0])
    assert b"Accept: application/json" in fields(place.heads[0])
    own = ["-H", "Content-Type: application/ld+json"]
    cli("post", place.url("/"), "--json", "-", *own, *place.pins, given=b"1").expect(OK)
    assert b"Content-Type: application/ld+json" in fields(place.heads[1])
    assert b"Content-Type: application/json" not in fields(place.heads[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json", '{"s3cret": '], "got something else at line 1, column 12"),
        (["--json", "NaN"], "got NaN, which JSON does not have"),
        (["--json", "[" * 100_000], "too deep or too long"),
        (["--json", b'"\xff s3cret"'], "not UTF-8"),
        (["--json", ""], "got something else"),
        (["--json", "1", "-d", "s3cret"], "got several"),
        (["-d", "s3cret", "-d", "s3cret"], "got several"),
        (["-d", "@absent"], "absent: No such file"),
        (["-d", "@."], "Is a directory"),
        (["-d", "@"], "got an empty name"),
        (["-d", "-", "--pcrs", "-"], "named twice"),
        (["-d", "-", "-H", "@-"], "named twice"),
        (["-C"], "expected a GET with -o"),
        (["-o", ""], "--output: expected a value"),
        (["--patience", "-1"], "patience"),
        (["--url", ""], "URL: expected a value"),
    ],
)
def test_bodies_refused(place: Place, arguments: list[str | bytes], said: str) -> None:
    refused = cli("post", place.url("/"), *arguments, *place.pins).expect(USAGE, said)
    assert "s3cret" not in refused.err
    assert refused.out == b""
    place.expect_untouched()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nonsense", "a path that begins with /"),
        ("", "a path that begins with /"),
        ("http://x/", "InvalidURL: expected wss://"),
        ("foo://x/", "InvalidURL: expected wss://"),
        ("wss:///x", "InvalidURL: "),
        ("wss://a\nb/x", "InvalidURL: "),
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        (b"\xff", r"\xff"),
        (b"wss://a/\xff", ": "),
        ("wss://u:s3cret@x/", "without user name and password"),
    ],
)
def test_targets_refused(place: Place, target: str | bytes, said: str) -> None:
    refused = cli("get", target, *place.pins).expect(USAGE, said)
    assert "\x1b" not in refused.err
    assert "s3cret" not in refused.err


def test_fail(place: Place) -> None:
    missing = b"HTTP/1.1 404 Not\x85 Here\r\nContent-Length: 4\r\n\r\nbody"
    place.answers = [missing, missing, missing]
    failed = cli("get", place.url("/"), "--fail", *place.pins)
    failed.expect(HTTP_STATUS, r"error: HTTP 404 Not\x85 Here")
    assert failed.out == b""
    assert cli("get", place.url("/"), *place.pins).expect(OK).out == b"body"
    failed = cli("head", place.url("/"), "-f", *place.pins).expect(HTTP_STATUS)
    assert failed.out.startswith(b"HTTP/1.1 404 ")


def test_redirects_are_followed_where_asked(place: Place) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 5\r\n\r\nmoved"
    place.answers = [moved, moved]
    assert cli("get", place.url("/"), *place.pins).expect(OK).out == b"moved"
    assert cli("get", place.url("/"), "-L", *place.pins).expect(OK).out == b"ok"
    assert place.heads[-1].startswith(b"GET /there ")
    away = b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n"
    place.answers = [away]
    cli("get", place.url("/"), "-L", *place.pins).expect(USAGE, "ForeignURL: ")


def test_a_body_is_not_changed(place: Place) -> None:
    body = bytes(range(256)) * 8 + b"\x1b]0;title\x07\r\n"
    place.answers = [ok(body), ok(body, b"Content-Encoding: gzip\r\n")]
    assert cli("get", place.url("/"), *place.pins).expect(OK).out == body
    assert cli("get", place.url("/"), *place.pins).expect(OK).out == body


def test_headers_of_a_server_steer_no_terminal(place: Place) -> None:
    evil = b"X-Evil: a\xc2\x9b2Jb\xff\xe2\x80\xae\r\nX-Latin: \xe4\r\nX-Long: %b\r\n" % (
        b"x" * 9000
    )
    place.answers = [b"HTTP/1.1 200 \xc2\x9b31m\r\n%bContent-Length: 0\r\n\r\n" % evil]
    lines = cli("head", place.url("/"), *place.pins).expect(OK).text.splitlines()
    assert lines[:3] == [
        r"HTTP/1.1 200 \x9b31m",
        r"X-Evil: a\x9b2Jb\xff\u202e",
        r"X-Latin: \xe4",
    ]
    assert lines[3] == "X-Long: " + "x" * 9000


def test_a_module_id_steers_no_terminal(place: Place) -> None:
    name = "i-\x1b[31m\nverified\u202e"
    with LocalEnclave(place.server.address, module_id=name, pcrs=place.enclave.pcrs) as enclave:
        assert enclave.root is not None
        Path(place.root[1]).write_bytes(enclave.root)
        for command in ("verify", "doctor"):
            text = cli(command, enclave.url, *place.pins).expect(OK).text
            assert r"i-\x1b[31m\nverified\u202e" in text
            assert "\x1b" not in text
        assert b"\x1b" not in cli("verify", enclave.url, *place.pins, "--json").expect(OK).out


def test_a_huge_header_of_the_server(place: Place) -> None:
    place.answers = [ok(extra=b"X: %b\r\n" % (b"x" * 2_000_000))]
    refused = cli("get", place.url("/"), *place.pins).expect(UNREACHABLE, "ProtocolError: ")
    assert refused.out == b""


def test_half_an_answer(place: Place) -> None:
    place.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"]
    broken = cli("get", place.url("/"), "--timeout", "0.5", *place.pins)
    broken.expect(UNREACHABLE, "ReadTimeout: ")
    assert broken.out == b"half"


def test_not_reached(place: Place) -> None:
    url = place.enclave.url
    place.enclave.stop()
    cli("get", f"{url}/", "--patience", "0", *place.pins).expect(UNREACHABLE, "ConnectError: ")
    late = cli("get", f"{url}/", "--patience", "0.2", *place.pins)
    late.expect(UNREACHABLE, "Connect")


def test_streams_that_are_closed(place: Place) -> None:
    closed = ["sh", "-c", 'exec "$@" <&-', "sh"]
    shut = ended(started("post", place.url("/"), "-d", "-", *place.pins, before=closed, stdin=None))
    shut.expect(USAGE, "expected standard input to be open")
    closed[2] = 'exec "$@" >&-'
    shut = ended(started("get", place.url("/"), *place.pins, before=closed, stdout=None))
    shut.expect(CANNOT_WRITE, "expected standard output to be open")
    place.expect_untouched()
    closed[2] = 'exec "$@" 2>&- <&-'
    shut = ended(started("get", place.url("/"), *place.pins, before=closed, stderr=None))
    assert shut.expect(OK).out == b"ok"
    shut = ended(started("get", "x", *place.pins, before=closed, stderr=None))
    assert shut == (USAGE, b"", "")


def test_nobody_reads(place: Place) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for arguments in (["get", place.url("/")], ["head", place.url("/")], ["--help"]):
            pins = [] if arguments == ["--help"] else place.pins
            quiet = ended(started(*arguments, *pins, stdout=writer))
            assert quiet.expect(BROKEN_PIPE).err == "", arguments
    finally:
        os.close(writer)


def test_a_full_disk(place: Place) -> None:
    with open("/dev/full", "wb") as full:
        for arguments in (["get", place.url("/")], ["head", place.url("/")], ["verify"]):
            env = {"ENCLAVIA_URL": place.enclave.url}
            failed = ended(started(*arguments, *place.pins, env=env, stdout=full))
            failed.expect(CANNOT_WRITE, "standard output: No space left on device")


def on_a_terminal(*arguments: str | Path, **env: str) -> str:
    """What a person would see: standard output and standard error on one terminal."""
    ours, theirs = pty.openpty()
    process = started(*arguments, stdout=theirs, stderr=theirs, env={"TERM": "xterm", **env})
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65536):
            seen += piece
    except OSError:  # the last one has closed it
        pass
    finally:
        os.close(ours)
    assert ended(process).code == OK, seen
    return seen.decode()


@pytest.mark.parametrize("typed", [b"typed\n", b"two\nlines\n"])
def test_what_is_typed_ends_with_the_first_end(place: Place, typed: bytes) -> None:
    """Ctrl-D once: a read that goes on behind it waits for a second one."""
    ours, theirs = pty.openpty()
    os.write(ours, typed + b"\x04")
    process = started("post", place.url("/"), "-d", "-", *place.pins, stdin=theirs)
    os.close(theirs)
    try:
        assert ended(process).expect(OK).out == b"ok"
    finally:
        os.close(ours)
    assert place.bodies == [typed]


@pytest.mark.parametrize("length", [5, 2 * 1024 * 1024], ids=["short", "in chunks"])
def test_standard_input_that_does_not_wait_is_read_to_its_end(place: Place, length: int) -> None:
    """Whoever shares the pipe has made it so. That nothing is there yet is no end of the body."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    process = started("post", place.url("/"), "-d", "-", *place.pins, stdin=ours)
    body = bytes(length) + b"more"
    with open(theirs, "wb", buffering=0) as file:
        for piece in (body[:length], body[length:]):
            file.write(piece)
            eventually(lambda: not select.select([ours], [], [], 0)[0])  # the program has read it
    assert ended(process).expect(OK).out == b"ok"
    os.close(ours)
    assert place.bodies == [body]


def test_pins_that_are_typed(place: Place) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, Path(place.pins[1]).read_bytes().rstrip() + b"\n\x04")
    process = started("pcrs", "-", stdin=theirs)
    os.close(theirs)
    try:
        assert ended(process).expect(OK).out.startswith(b"PCR0: ")
    finally:
        os.close(ours)


def test_colours_are_for_terminals(place: Place) -> None:
    env = {"ENCLAVIA_URL": place.enclave.url}
    assert "\x1b[32mverified\x1b[0m" in on_a_terminal("verify", *place.pins, **env)
    assert "\x1b" not in on_a_terminal("verify", *place.pins, NO_COLOR="1", **env)
    forced = cli("verify", *place.pins, env={"FORCE_COLOR": "1", **env})
    assert b"\x1b" not in forced.expect(OK).out


def test_a_terminal_is_left_as_it_was(place: Place, tmp_path: Path) -> None:
    place.answers = [ok(b"x" * 300_000)]
    seen = on_a_terminal("get", place.url("/"), *place.pins, "-o", tmp_path / "a\x1b[31mb")
    assert r"a\x1b[31mb" in seen
    assert "0.3/0.3 MiB" in seen
    assert seen.count("\x1b[?25l") >= 1
    assert seen.rstrip().endswith("\x1b[?25h")
    assert set(re.findall(r"\x1b\[[^a-z]*[a-z]", seen)) == {"\x1b[?25l", "\x1b[?25h"}


def test_arguments_are_not_in_a_traceback(place: Place) -> None:
    """A fault of the program itself says where it is, and nothing that it was given."""
    code = (
        "import enclavia._cli.requests as r, enclavia._cli.main as m, sys\n"
        "def fail(*_): raise RuntimeError('s3cret')\n"
        "r.headers_of = fail\n"
        "sys.exit(m.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "get", place.url("/"), "-H", "A: s3cret", *place.pins],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 70
    assert "InternalError: expected no RuntimeError at " in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
