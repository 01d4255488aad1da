"""The parsers that are Python: pins, URLs, HTTP/1.1 responses, upgrade chains. Coverage-guided by
Atheris, by hand:

    pip install atheris
    python tests/fuzz/fuzz_python.py pcrs -max_total_time=60 NEW_INPUTS tests/fuzz/corpus/pcrs

The kept inputs run in tests/python/house/test_fuzz.py, without Atheris.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import sys
from collections.abc import Callable

atheris = importlib.import_module("atheris") if __name__ == "__main__" else None
with atheris.instrument_imports(["enclavia", "httpx2"]) if atheris else contextlib.nullcontext():
    import httpx2

    from enclavia import ConnectionClosed, InvalidURL, Pcrs, ProtocolError, UpgradeChainError
    from enclavia._channel.url import EnclaveURL
    from enclavia._http1.head import Head
    from enclavia._http1.limits import Limits
    from enclavia._http1.response import End, Event, Failed, ResponseParser
    from enclavia._trust.served import read_links, read_row

METHODS = (b"GET", b"HEAD", b"CONNECT", b"POST")
# The limit of what comes between chunks is not made small: what of it is counted depends on the
# cuts, since a piece that had a chunk in it is held by nobody.
LIMITS = Limits(head_bytes=512, header_count=8, informational=3)


def pcrs(data: bytes) -> None:
    """What was read is in the text, and is read again from what is printed of it."""
    try:
        pins = Pcrs.parse(data)
    except ValueError:
        return
    lowered = json.dumps(data.decode("utf-8-sig"), ensure_ascii=False).lower()
    for value in pins.as_tuple():
        assert len(value) in (32, 48, 64)
        # Hex may have spaces in it; the first byte has none.
        assert value.hex()[:2] in lowered
    assert Pcrs.parse(json.dumps(pins.as_dict())) == pins
    assert (
        Pcrs.parse("\n".join(f"PCR{i}: {v.hex()}" for i, v in enumerate(pins.as_tuple()))) == pins
    )


def url(data: bytes) -> None:
    """Input: an enclave's URL, a line end, the URL of a request. What goes to the enclave goes to
    its host and port, as httpx2 sees them."""
    first, _, second = data.decode("utf-8", "replace").partition("\n")
    try:
        parsed = EnclaveURL.parse(first)
    except InvalidURL:
        return
    assert parsed.scheme in ("ws", "wss")
    assert 0 < parsed.port < 65536
    assert parsed.host
    assert parsed.path.startswith("/")
    for text in (parsed.host, parsed.path, parsed.authority, str(parsed)):
        assert text.isascii()
        assert text.isprintable()
        assert " " not in text
    assert EnclaveURL.parse(str(parsed)) == parsed
    try:
        request = parsed.base_url.join(second)
    except (httpx2.InvalidURL, ValueError):
        return
    if parsed.refusal(request) is None:
        again = EnclaveURL.parse(request.copy_with(scheme=parsed.scheme, userinfo=b"", fragment=""))
        assert again.host == parsed.host
        default = request.port is None and request.scheme in ("https", "wss", "ws", "http")
        assert again.port == parsed.port or default


class _Told:
    """What a parser said, with the pieces of the body joined."""

    def __init__(self, method: bytes) -> None:
        self._parser = ResponseParser(method, LIMITS)
        self._body_begun = False
        self.heads: list[Head] = []
        self.body = b""
        self.end: End | None = None
        self.failed = False

    def take(self, feed: Callable[[], list[Event]]) -> None:
        if self.failed:
            return
        try:
            events = feed()
        except (ProtocolError, ConnectionClosed):
            self.failed = True
            return
        for event in events:
            assert self.end is None, "something after the end"
            if isinstance(event, Head):
                assert not self._body_begun
                assert len(event.headers) <= LIMITS.header_count
                self.heads.append(event)
                assert len(self.heads) <= LIMITS.informational + 1
            elif isinstance(event, Failed):
                self.failed = True
            elif isinstance(event, bytes):
                self._body_begun = True
                assert event
                self.body += event
            else:
                self.end = event

    def read(self, pieces: list[bytes]) -> _Told:
        for piece in pieces:
            self.take(lambda piece=piece: self._parser.feed(piece))  # type: ignore[misc]
        self.take(self._parser.feed_eof)
        assert self.failed or self._parser.finished
        assert not self._parser.reusable or self.end is not None
        return self

    def told(self) -> tuple[object, ...]:
        return (self.failed, self.end, self.heads, self.body, self._parser.reusable)


def http1(data: bytes) -> None:
    """Input: method, size of the pieces, then the answer. Whole and cut it says the same, up to
    where it is refused."""
    if len(data) < 2:
        return
    method, size, answer = METHODS[data[0] % len(METHODS)], data[1] % 40 + 1, data[2:]
    whole = _Told(method).read([answer] if answer else [])
    cut = _Told(method).read([answer[at : at + size] for at in range(0, len(answer), size)])
    assert whole.told() == cut.told(), (whole.told(), cut.told())


def upgrades(data: bytes) -> None:
    """Input: an enclave's row, a NUL, the links of its chain. What is read keeps the limits, is in
    order, and is written again as what it was."""
    row_text, _, links_text = data.partition(b"\0")
    with contextlib.suppress(UpgradeChainError):
        row = read_row(row_text)
        assert row.image_digest
        assert row.control_public_key is None or 33 <= len(row.control_public_key) <= 65
        told = json.loads(row_text)
        assert told.get("upgradable", False) is row.upgradable
    try:
        links = read_links(links_text)
    except UpgradeChainError as error:
        assert not error.retryable
        assert error.reason in error.message
        return
    told = json.loads(links_text)
    assert 1 <= len(links) == len(told) <= 1000
    for place, (link, each) in enumerate(zip(links, told, strict=True)):
        assert link.place == place
        assert each.get("sequence") in (None, place)
        assert link.kind == each["kind"]
        assert base64.b64decode(each["payload"]) == link.payload
        assert (link.signature is None) == (link.kind == "boot")
        assert len(link.fields["enclave_id"]) == 16
        for name in ("booted_at", "valid_from", "issued_at"):
            assert isinstance(link.fields.get(name, 0), int)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "http1": http1,
    "pcrs": pcrs,
    "upgrades": upgrades,
    "url": url,
}


def main() -> None:
    assert atheris is not None
    atheris.Setup(sys.argv, TARGETS[sys.argv.pop(1)])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
