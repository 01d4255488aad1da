"""``get``, ``head``, ``post``, ``put``, ``patch`` and ``delete``: one request through a verified
channel.

Decides where a request is sent, and where its answer is written. Calls: nothing of the package but
what is public. Locks: none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any, Final

import click
import httpx2

import enclavia

from . import streams
from .bodies import body_of, headers_of, json_body
from .download import Asked, download, send, status_problem
from .exits import HTTP_STATUS, Problem
from .files import Output, check_target, output_for
from .progress import Progress
from .settings import Connection, client, connection_options, given, needed_url, refusing

__all__ = ["delete", "get", "head", "patch", "post", "put"]

_PATIENCE: Final = 5.0
_FIRST_ERROR: Final = 400
_LINE_MAX: Final = 1024 * 1024

_COMMON = (
    click.option(
        "--url",
        metavar="URL",
        help="The enclave, where TARGET is a path. Else ENCLAVIA_URL.",
    ),
    click.option(
        "-H",
        "--header",
        "headers",
        metavar="HEADER",
        multiple=True,
        help="'Name: value', or @FILE with one in each line.",
    ),
    click.option(
        "-f", "--fail", is_flag=True, help="Exit with 22 where the status is 400 or more."
    ),
    click.option("-L", "--location", is_flag=True, help="Follow redirects within the enclave."),
    click.option(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=_PATIENCE,
        show_default=True,
        help="For how long connecting is tried again; 0 is one attempt.",
    ),
    click.option(
        "--debug-mode",
        is_flag=True,
        help="Talk to a debug enclave. Nothing proves who it is.",
    ),
)
_BODY = (
    click.option(
        "-d",
        "--data",
        metavar="DATA",
        multiple=True,
        help="The body: text, @FILE, or - for standard input. Sent as it is.",
    ),
    click.option(
        "--json",
        "json_data",
        metavar="DATA",
        help="The same, as JSON: checked, and sent with Content-Type and Accept.",
    ),
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write the body to FILE, which gets its name when the body is whole.",
    ),
    click.option(
        "-C",
        "--continue",
        "go_on",
        is_flag=True,
        help="With -o: keep what came of a body that ended early, in FILE.part, and go on with it.",
    ),
)
_BODY_HELP: Final = """Send a {method} request to TARGET and print the body, unchanged.

TARGET is a path ("/health", of --url or ENCLAVIA_URL) or a URL (wss://<host>/health).
"""
_HEAD_HELP: Final = """Send a HEAD request to TARGET and print the status and the headers.

TARGET is a path ("/health", of --url or ENCLAVIA_URL) or a URL (wss://<host>/health).
"""


def _targets(connection: Connection, target: str, url: str | None) -> tuple[str, httpx2.URL]:
    """The enclave's URL, and the request's."""
    with refusing():
        if target.startswith(("/", "?")):
            enclave = connection.needed_url(url)
            # Whole, since the path "//host/x" alone would be taken for a host and a path.
            path = httpx2.URL(f"https://host{target}").raw_path
            return enclave, httpx2.URL(enclave).copy_with(
                scheme="https", raw_path=path, fragment=None
            )
        if "://" not in target:
            raise Problem(
                "TARGET: expected a path that begins with / or a URL (wss://<host>/path), got "
                f"'{streams.visible(target, 200)}'"
            )
        parsed = httpx2.URL(target)
        inside = parsed.copy_with(scheme="https") if parsed.scheme in ("ws", "wss") else parsed
        if url is not None:
            return needed_url(url), inside
        return str(parsed.copy_with(raw_path=b"/", fragment=None)), inside


def _send(
    method: str,
    connection: Connection,
    target: str,
    *,
    url: str | None,
    headers: tuple[str, ...],
    fail: bool,
    location: bool,
    patience: float,
    debug_mode: bool,
    data: tuple[str, ...] = (),
    json_data: str | None = None,
    output: str | None = None,
    go_on: bool = False,
) -> None:
    enclave, inside = _targets(connection, target, url)
    _one_standard_input(connection, headers, data, json_data)
    fields = headers_of(headers)
    content = _content(fields, data, json_data)
    asked = Asked(method, inside, tuple(fields), content, location, fail)
    name = given("--output", output)
    if go_on and (name is None or name == "-" or method != "GET"):
        raise Problem("--continue: expected a GET with -o FILE")
    made = client(
        enclave,
        connection,
        debug_mode=debug_mode,
        patience=patience,
        headers={
            "User-Agent": f"enclavia-client/{enclavia.__version__}",
            "Accept-Encoding": "identity",
        },
    )
    # A file is made before anything is sent: what cannot be written need not be asked for.
    if method == "HEAD":
        with made:
            _head(made, asked)
    elif name is not None and _is_file(method, name, go_on):
        with Progress(os.path.basename(name)) as progress, contextlib.closing(made):
            download(made, asked, name, progress, go_on=go_on)
    else:
        with output_for(name) as out, made:
            _print(made, asked, out)


def _one_standard_input(
    connection: Connection,
    headers: tuple[str, ...],
    data: tuple[str, ...],
    json_data: str | None,
) -> None:
    named = [*connection.pcrs, *(text[1:] for text in headers if text.startswith("@"))]
    named += [text.removeprefix("@") for text in (*data, json_data or "")]
    if named.count("-") > 1:
        raise Problem("expected standard input to be used once, got it named twice")


def _content(
    fields: list[tuple[bytes, bytes]], data: tuple[str, ...], json_data: str | None
) -> bytes | Iterable[bytes] | None:
    if len(data) + (json_data is not None) > 1:
        raise Problem("expected one body, got several: give -d or --json once")
    if data:
        return body_of(data[0])
    if json_data is None:
        return None
    content = json_body(json_data)
    there = {name.lower() for name, _ in fields}
    for name in (b"Content-Type", b"Accept"):
        if name.lower() not in there:
            fields.append((name, b"application/json"))
    return content


def _is_file(method: str, name: str, go_on: bool) -> bool:
    """Whether it is a GET into a file, which can be gone on with."""
    if name == "-" or method != "GET" or not check_target(name):
        if go_on:
            raise Problem("--continue: expected -o to name a file, got a device or a pipe")
        return False
    return True


def _print(made: enclavia.Client, asked: Asked, out: Output) -> None:
    response = send(made, asked)
    try:
        if asked.fail and response.status_code >= _FIRST_ERROR:
            raise status_problem(response)
        for chunk in response.iter_raw():
            out.write(chunk)
    finally:
        response.close()
    out.commit()


def _head(made: enclavia.Client, asked: Asked) -> None:
    response = send(made, asked)
    response.close()
    reason = response.extensions.get("reason_phrase", b"")
    first = b"HTTP/1.1 %d %b" % (response.status_code, reason)
    lines = [first.rstrip(), *(b"%b: %b" % field for field in response.headers.raw)]
    streams.say(*(streams.visible(_decoded(line), _LINE_MAX) for line in lines))
    if asked.fail and response.status_code >= _FIRST_ERROR:
        raise Problem(f"HTTP {response.status_code}", HTTP_STATUS)


def _decoded(line: bytes) -> str:
    """UTF-8 where it is; other bytes as ``\\xff``."""
    return line.decode("utf-8", "backslashreplace")


def _command(method: str) -> click.Command:
    def function(connection: Connection, target: str, **options: Any) -> None:  # noqa: ANN401
        _send(method, connection, target, **options)

    options = _COMMON if method == "HEAD" else (*_BODY, *_COMMON)
    decorated = connection_options(function)
    for option in reversed(options):
        decorated = option(decorated)
    decorated = click.argument("target")(decorated)
    text = _HEAD_HELP if method == "HEAD" else _BODY_HELP
    return click.command(name=method.lower(), help=text.format(method=method))(decorated)


get = _command("GET")
head = _command("HEAD")
post = _command("POST")
put = _command("PUT")
patch = _command("PATCH")
delete = _command("DELETE")
