"""The edges of arguments: what is outside a domain is refused where it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import enclavia

PINS = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)
MAKERS: dict[str, Callable[..., Any]] = {
    "Client": enclavia.Client,
    "AsyncClient": enclavia.AsyncClient,
    "EnclaveTransport": enclavia.EnclaveTransport,
    "AsyncEnclaveTransport": enclavia.AsyncEnclaveTransport,
    "Channel.connect": enclavia.Channel.connect,
    "AsyncChannel.connect": enclavia.AsyncChannel.connect,
}


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("pcrs", [], ValueError, "an empty list"),
        ("pcrs", "11" * 48, TypeError, "got str"),
        ("pcrs", b"", TypeError, "got bytes"),
        ("pcrs", 5, TypeError, "got int"),
        ("pcrs", [None], TypeError, "got NoneType"),
        ("root", b"", ValueError, "no bytes"),
        ("root", "", ValueError, "an empty text"),
        ("root", 5, TypeError, "got int"),
        ("debug_mode", 1, TypeError, "got 1"),
        ("debug_mode", None, TypeError, "got None"),
        ("debug_mode", "", TypeError, "got ''"),
        ("clock_leeway", -1, ValueError, "got -1"),
        ("clock_leeway", float("nan"), ValueError, "got nan"),
        ("clock_leeway", True, TypeError, "got bool"),
        ("upgrade_headers", "", TypeError, "got str"),
        ("upgrade_headers", b"a: b", TypeError, "got bytes"),
        ("upgrade_headers", {"": "x"}, ValueError, "is not a header name"),
        ("upgrade_headers", {"a\nb": "x"}, ValueError, "is not a header name"),
        ("upgrade_headers", {"a": "x\r\nb: c"}, ValueError, "characters not allowed"),
        ("upgrade_headers", {"a": 5}, TypeError, "as text"),
        ("verify", "", ValueError, "an empty text"),
        ("verify", None, TypeError, "got NoneType"),
        ("verify", 1, TypeError, "got int"),
        ("proxy", "", ValueError, "expected http://"),
        ("max_in_flight", 0, ValueError, "got 0"),
        ("max_in_flight", 65, ValueError, "got 65"),
        ("max_in_flight", True, TypeError, "got bool"),
        ("max_in_flight", 1.5, TypeError, "got float"),
    ],
)
@pytest.mark.parametrize("maker", MAKERS)
def test_refused_where_it_is_given(
    maker: str, name: str, value: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        MAKERS[maker]("wss://e.example", **{"pcrs": PINS, name: value})
    assert name in str(caught.value), "which argument it is about"
    assert words in str(caught.value), "what was got"
