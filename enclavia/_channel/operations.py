"""What one channel is asked for, written once for threads and event loops.

Each operation is a coroutine over :class:`enclavia._io.face.Io`: the blocking classes run it in one
step, the awaiting ones await it. Decides who owns a slot, a request or a stream while something is
waited for, and gives it back where the waiting ends in any other way than with success.

Calls: _arguments, _core, _errors, _identity, _io, _records, _text, _trust. Locks: none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from .. import _core
from .._arguments import byte_view
from .._errors import PcrMismatch, ReadTimeout
from .._io.face import Io, deadline_of, time_left
from .._records import fields
from .._text import shown
from .config import ChannelConfig, logger
from .payload import first_piece

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .._identity.attestation import Attestation
    from .._io.local import AnyChannel, AnyStream
    from .._trust.receipts import Receipt
    from .._trust.trust import Trust

__all__ = ["attest", "connect", "log_verified", "open_stream", "request", "start_stream"]


async def connect(
    io: Io[Any], config: ChannelConfig, timeout: float | None
) -> tuple[_core.Channel, Receipt]:
    """A channel that is open, its enclave verified."""
    trust = config.trust()
    if trust is not None:
        return await _connect_trusted(io, config, trust, deadline_of(timeout))
    channel = config.open()
    try:
        await io.wait_verified(channel, timeout)
        raw = channel.attestation()
        receipt = config.receipt(raw, channel.handshake_hash, config.pins)
        log_verified(config, raw)
    except BaseException:
        channel.close(0)
        raise
    return channel, receipt


async def _connect_trusted(
    io: Io[Any], config: ChannelConfig, trust: Trust, deadline: float | None
) -> tuple[_core.Channel, Receipt]:
    """As :func:`connect`, where the pins may change meanwhile, or somebody is asked."""
    followed = 0
    while True:
        pins = await trust.pins(io, deadline)
        channel = config._replace(pins=pins).open()
        try:
            await io.wait_verified(channel, time_left(deadline))
            raw = channel.attestation()
            log_verified(config, raw)
            receipt = config.receipt(raw, channel.handshake_hash, pins)
            await trust.verified(io, receipt, deadline)
        except PcrMismatch as error:
            channel.close(0)
            if followed == trust.MOST_FOLLOWED or not await trust.mismatch(
                io, error, pins, deadline
            ):
                raise
            followed += 1
        except BaseException:
            channel.close(0)
            raise
        else:
            return channel, receipt


def log_verified(config: ChannelConfig, raw: Mapping[str, object], what: str = "") -> None:
    """``what``: of the enclave was verified, where it is not the first document of a channel."""
    logger.info(
        "verified %s%s: form %s, module %s",
        what,
        config.url.authority,
        raw["form"],
        shown(str(raw["module_id"] or "")) or "-",
        extra=fields("verified_again" if what else "verified", config.url.authority),
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
    io: Io[Any],
    channel: AnyChannel,
    first: memoryview,
    timeout: float | None,
    expect_usable: Callable[[], Awaitable[None]] | None = None,
) -> AnyStream:
    """A stream whose opening carries ``first``. ``timeout``: for a free slot. ``expect_usable``:
    awaited once there is a slot; raises where nothing may begin on the channel any more."""
    slot = await io.reserve(channel, timeout)
    try:
        if expect_usable is not None:
            await expect_usable()
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
    except ValueError as error:
        slot.release()
        raise ValueError(f"data: {error}; open_stream takes more") from None
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


async def attest(
    io: Io[Any],
    config: ChannelConfig,
    channel: _core.Channel,
    timeout: float | None,
    receipts: deque[Receipt],
) -> Attestation:
    """A fresh document, verified like the first one. ``receipts``: the channel's, to which that of
    the fresh one is added."""
    deadline = deadline_of(timeout)
    raw = await io.attest(channel, timeout)
    if raw is None:
        raise ReadTimeout(f"expected an attestation document within {timeout} s, got none")
    receipt = receipts[-1]._fresh(raw)
    if config.on_attestation is not None:
        from .._trust.hook import tell  # seldom

        try:
            await tell(io, config.on_attestation, receipt, channel, deadline)
        except BaseException:  # also Ctrl-C or a cancellation: nobody agreed to the document
            channel.close(0)
            raise
    receipts.append(receipt)
    from .._identity.attestation import Attestation  # connecting needs none

    return Attestation._from_raw(raw, config.names)
