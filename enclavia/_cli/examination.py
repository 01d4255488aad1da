"""What ``doctor`` reports: what this installation is made of, and how an enclave looks from here.

:func:`plain` works without click, so that an installation without it can be examined.

Decides what counts as trouble, and its exit code. Calls: nothing of the package but what is public.
Locks: none.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Final, NamedTuple, TypedDict

import enclavia

from . import exits, streams

__all__ = ["Fact", "Way", "code_of", "of_enclave", "of_installation", "plain", "report"]

_PACKAGES: Final = (
    "httpx2", "anyio", "httptools", "click", "requests", "httpx", "cryptography", "uvicorn",
    "uvloop", "waitress", "certifi",
)  # fmt: skip


class Fact(NamedTuple):
    """One line. ``trouble``: the exit code where something is wrong, else 0."""

    name: str
    value: str
    trouble: int = 0


def of_installation() -> list[Fact]:
    """Versions, libraries, and the authorities of this machine."""
    facts = [
        Fact("enclavia", enclavia.__version__),
        Fact("python", f"{platform.python_version()} ({sys.executable})"),
        Fact("system", platform.platform()),
    ]
    facts += [Fact(name.replace("_", " "), value) for name, value in enclavia.build_info().items()]
    facts += [Fact(name, _version(name)) for name in _PACKAGES]
    try:
        facts.append(Fact("CA store", enclavia.ca_store()))
    except enclavia.ConnectError as error:
        facts.append(Fact("CA store", str(error), exits.REFUSED))
    return facts


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


class Way(TypedDict):
    """How an enclave is reached: keywords of ``Channel.connect``."""

    verify: bool | str
    proxy: str | None
    timeout: float


def of_enclave(
    url: str,
    *,
    pcrs: Sequence[enclavia.Pcrs] | None,
    root: str | bytes | None,
    way: Way,
) -> list[Fact]:
    """How an enclave looks: what it attests, whether that is signed, by which clock, and whether it
    is the pinned one.

    It is asked for its document in debug mode, so that one can be shown that does not verify.
    Nothing but that question is sent, and the document is then verified as always.
    """
    facts = [Fact("url", url)]
    begin = time.time()
    try:
        with _connected(url, root, way) as channel:
            attested = channel.attestation
    except enclavia.EnclaviaError as error:
        if exits.exit_code(error) == exits.USAGE:
            raise
        said = f"{type(error).__name__}: {error}"
        return [*facts, Fact("reached", f"no: {said}", exits.exit_code(error))]
    end = time.time()
    facts += [
        Fact("reached", "yes"),
        Fact("module id", attested.module_id or "-"),
        *(Fact(f"PCR{index}", value.hex()) for index, value in attested.pcrs.items() if index < 3),
    ]
    facts.append(_clock(attested, begin, end))
    return [*facts, *_identity(attested, pcrs, root)]


def _connected(url: str, root: str | bytes | None, way: Way) -> enclavia.Channel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", enclavia.DebugModeWarning)
        return enclavia.Channel.connect(url, root=root, debug_mode=True, **way)


def _clock(attested: enclavia.Attestation, begin: float, end: float) -> Fact:
    """A document was made while it was waited for, so its time lies in between."""
    if not attested.certificate:
        return Fact("clock", "unknown: the document has no time")
    made = attested.timestamp.timestamp()
    # The document has milliseconds.
    if begin - 0.001 <= made <= end + 0.001:
        return Fact("clock", "agrees with the document's")
    offset = begin - made if made < begin else end - made
    return Fact("clock", f"{offset:+.1f} s beside the document's")


def _identity(
    attested: enclavia.Attestation, pcrs: Sequence[enclavia.Pcrs] | None, root: str | bytes | None
) -> list[Fact]:
    try:
        enclavia.verify_attestation(attested.document, nonce=attested.nonce, root=root)
    except enclavia.AttestationError as error:
        kind = "debug" if error.hint == "debug enclave" else "unknown"
        said = f"{type(error).__name__}: {error}"
        return [Fact("mode", kind), Fact("verified", f"no: {said}", exits.REFUSED)]
    mode = Fact("mode", "production: signed, and chained to the root")
    if pcrs is None:
        return [mode, Fact("verified", "the signature; no pins were given to compare with")]
    if not pcrs:
        said = "the policy allows no version any more"
        return [mode, Fact("verified", f"no: {said}", exits.REFUSED)]
    try:
        enclavia.verify_attestation(attested.document, pcrs=pcrs, root=root)
    except enclavia.AttestationError as error:
        said = f"{type(error).__name__}: {error}"
        return [mode, Fact("verified", f"no: {said}", exits.REFUSED)]
    return [mode, Fact("verified", "yes: it is the pinned image")]


def report(facts: list[Fact]) -> int:
    """Prints them; returns the exit code: that of the last trouble."""
    width = max(len(fact.name) for fact in facts) + 2
    for fact in facts:
        value = streams.visible(fact.value)
        streams.say(f"{fact.name:<{width}}{streams.coloured(value, 31) if fact.trouble else value}")
    return code_of(facts)


def code_of(facts: list[Fact]) -> int:
    """The exit code: that of the last trouble, which is the enclave's where there is one."""
    return next((fact.trouble for fact in reversed(facts) if fact.trouble), exits.OK)


def plain() -> int:
    """Of the installation alone."""
    return report(of_installation())
