"""How the tests of arguments call what they are about, and what a refusal must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from argument_rows import (
    Row,
)
from support import HANG

import enclavia
import enclavia.httpx
import enclavia.requests
import enclavia.testing
from enclavia.testing import LocalEnclave


def refused(call: Callable[[], object], name: str, row: Row) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError)) as caught:
        call()
    assert not isinstance(caught.value, UnicodeError), "which is a ValueError of Python's own"
    assert isinstance(caught.value, row.error), repr(caught.value)
    text = str(caught.value)
    text.encode()  # may be printed anywhere
    assert "expected" in text, text
    assert row.words in text, text
    assert "got" in text, text
    if row.error is not enclavia.InvalidURL:
        assert name in text, text


def cases(table: dict[str, dict[str, list[Row]]]) -> list[Any]:
    return [
        pytest.param(call, name, rows, id=f"{call}({name})")
        for call, parameters in table.items()
        for name, rows in parameters.items()
    ]


def all_refused(make: Callable[[Any], Callable[[], object]], name: str, rows: list[Row]) -> None:
    wrong: list[str] = []
    for row in rows:
        try:
            refused(make(row.value), name, row)
        except (Exception, pytest.fail.Exception) as error:
            # Of its value only the type: Python does not print numbers of more than 4300 digits.
            wrong.append(f"{type(row.value).__name__}: {type(error).__name__}: {error!s:.300}")
    assert not wrong, "\n".join(wrong)


def found(dotted: str) -> Any:
    module, _, rest = dotted.removeprefix("enclavia.").rpartition(".")
    value: Any = enclavia
    for part in [*module.split("."), rest] if module else [rest]:
        value = getattr(value, part)
    return value


class Blocking:
    """The blocking channel and one stream of it, and how they are called."""

    def __init__(self, enclave: LocalEnclave) -> None:
        self.channel = enclavia.Channel.connect(
            enclave.url, pcrs=enclave.pcrs, root=enclave.root, timeout=HANG
        )
        self.stream = self.channel.open_stream(b"0123456789")

    def call(self, name: str, **arguments: Any) -> Any:
        owner, _, method = name.partition(".")
        bound = getattr(self.channel if owner == "Channel" else self.stream, method)
        positional = [arguments.pop(each) for each in ("n", "buffer") if each in arguments]
        positional += [arguments.pop("data")] if "data" in arguments else []
        return bound(*positional, **arguments)

    def close(self) -> None:
        self.stream.close()
        self.channel.close()
