"""How far a chain of upgrades was seen, so that links cannot be withheld later.

Decides whether a chain extends one that was seen before. Calls: _errors. Locks: none.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final, NamedTuple

from .._errors import UpgradeChainError
from .served import MOST_LINKS, failed, read_json, read_uuid

__all__ = ["Mark"]

_VERSION: Final = 1
_DIGEST_BYTES: Final = 32


class Mark(NamedTuple):
    """A high-water mark: of one enclave, the SHA-256 of each payload in order, and of those that
    were revoked."""

    enclave_id: uuid.UUID
    payloads: tuple[bytes, ...]
    revoked: frozenset[bytes]

    @classmethod
    def parse(cls, text: str | bytes) -> Mark:
        """Raises UpgradeChainError where it is no mark: one that cannot be read protects nobody, so
        it is not passed over."""
        try:
            return cls._of(read_json("the high-water mark", text))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise failed(
                "expected a high-water mark as it was written, got another text: restore it, or "
                "remove it to begin anew, which gives up what it has protected"
            ) from error

    @classmethod
    def _of(cls, value: Any) -> Mark:  # noqa: ANN401 - of JSON
        if value["version"] != _VERSION:
            raise ValueError
        links, revoked = value["payloads"], value["revoked"]
        if not 1 <= len(links) <= MOST_LINKS or value["links"] != len(links):
            raise ValueError
        return cls(
            read_uuid(value["enclave_id"]),
            tuple(map(_digest, links)),
            frozenset(map(_digest, revoked)),
        )

    def text(self) -> str:
        """JSON, one line."""
        return json.dumps(
            {
                "version": _VERSION,
                "enclave_id": str(self.enclave_id),
                "links": len(self.payloads),
                "tip": self.payloads[-1].hex(),
                "payloads": [each.hex() for each in self.payloads],
                "revoked": sorted(each.hex() for each in self.revoked),
            }
        )

    def expect_extended_by(self, other: Mark) -> None:
        """Raises UpgradeChainError where the other chain leaves out what this one had."""
        if other.enclave_id != self.enclave_id:
            raise failed(
                f"the high-water mark is that of enclave {self.enclave_id}, got a chain of "
                f"{other.enclave_id}: each enclave needs a mark of its own"
            )
        for index, (mine, theirs) in enumerate(zip(self.payloads, other.payloads, strict=False)):
            if mine != theirs:
                raise failed(
                    "expected the link that was seen here before (high-water mark), got another "
                    "one: the chain's past was changed",
                    index,
                )
        if len(other.payloads) < len(self.payloads):
            raise failed(
                f"expected at least the {len(self.payloads)} links that were seen before "
                f"(high-water mark), got {len(other.payloads)}: links are withheld"
            )
        if not self.revoked <= other.revoked:
            raise failed(
                "expected all revocations that were seen before (high-water mark), got fewer: what "
                "they revoke was relabelled"
            )

    def is_extended_by(self, other: Mark) -> bool:
        """The same, as an answer."""
        try:
            self.expect_extended_by(other)
        except UpgradeChainError:
            return False
        return True


def _digest(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != _DIGEST_BYTES:
        raise ValueError
    return value
