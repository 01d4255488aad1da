"""What one channel is asked for, written once for threads and event loops.

Each operation is a coroutine over :class:`enclavia._io.face.Io`: the blocking classes run it in one
step, the awaiting ones await it. Decides who owns a slot, a request or a stream while something is
waited for, and gives it back where the waiting ends in any other way than with success.

Calls: _arguments, _core, _errors, _identity, _io, _text, _trust. Locks: none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from .. import _core
from .._arguments import byte_view
from .._errors import PcrMismatch, ReadTimeout
from .._identity.attestation import Attestation
from .._io.face import Io, deadline_of, time_left
from .._io.local import AnyChannel, AnyStream
from .._text import shown
from .._trust.trust import MOST_FOLLOWED, Trust
from .config import ChannelConfig, logger
from .payload import first_piece

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["attest", "connect", "log_verified", "open_stream", "request", "start_stream"]


async def connect(io: Io[Any], config: ChannelConfig, timeout: float | None) -> _core.Channel:
    """A channel that is open, its enclave verified."""
    trust = config.trust()
    if trust is not None:
        return await _connect_trusted(io, config, trust, deadline_of(timeout))
    channel = config.open()
    try:
        await io.wait_verified(channel, timeout)
        log_verified(config, channel.attestation())
    except BaseException:
        channel.close(0)
        raise
    return channel


async def _connect_trusted(
    io: Io[Any], config: ChannelConfig, trust: Trust, deadline: float | None
) -> _core.Channel:
    """As :func:`connect`, where the pins may change meanwhile, or somebody is asked."""
    followed = 0
    while True:
        pins = await trust.pins(io, deadline)
        channel = config._replace(pins=pins).open()
        try:
            await io.wait_verified(channel, time_left(deadline))
            raw = channel.attestation()
            log_verified(config, raw)
            await trust.verified(io, raw, channel.handshake_hash, deadline)
        except PcrMismatch as error:
            channel.close(0)
            if followed == MOST_FOLLOWED or not await trust.mismatch(io, error, pins, deadline):
                raise
            followed += 1
        except BaseException:
            channel.close(0)
            raise
        else:
            return channel


def log_verified(config: ChannelConfig, raw: Mapping[str, object]) -> None:
    logger.info(
        "verified %s: form %s, module %s",
        config.url.authority,
        raw["form"],
        shown(str(raw["module_id"] or "")) or "-",
    )


async def open_stream(
    io: Io[Any], channel: _core.Channel, payload: Buffer, timeout: float | None
) -> _core.Stream:
    """A stream to which all of ``payload`` was written."""
    first, rest = first_piece(payload)
    stream = cast(_core.Stream, await start_stream(io, channel, first, timeout))
    if rest:
        try:
            await io.write(stream, rest, timeout)
        except BaseException:
            stream.close()
            raise
    return stream


async def start_stream(
    io: Io[Any], channel: AnyChannel, first: memoryview, timeout: float | None
) -> AnyStream:
    """A stream whose opening carries ``first``. ``timeout``: for a free slot."""
    slot = await io.reserve(channel, timeout)
    try:
        stream: AnyStream = channel.open_stream(slot, first)  # type: ignore[arg-type]
    except BaseException:
        slot.release()
        raise
    return stream


async def request(
    io: Io[Any], channel: _core.Channel, data: Buffer, timeout: float | None
) -> bytes:
    """One record there and one back. ``timeout`` bounds the wait for a slot and for the answer."""
    view = byte_view("data", data)
    deadline = deadline_of(timeout)
    slot = await io.reserve(channel, timeout)
    try:
        under_way = channel.start_request(cast(_core.Slot, slot), view)
    except BaseException:
        slot.release()
        raise
    answer = None
    try:
        answer = await io.answer(under_way, time_left(deadline))
    finally:
        if answer is None:
            under_way.abandon()
    if answer is None:
        raise ReadTimeout(f"expected an answer within {timeout} s, got none")
    return answer


async def attest(io: Io[Any], channel: _core.Channel, timeout: float | None) -> Attestation:
    """A fresh document, verified like the first one."""
    raw = await io.attest(channel, timeout)
    if raw is None:
        raise ReadTimeout(f"expected an attestation document within {timeout} s, got none")
    return Attestation._from_raw(raw)
