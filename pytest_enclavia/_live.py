"""The real enclave of a policy, in the place of a local one.

Decides what of a local enclave it has, and that a test which asks for the rest is skipped. Calls:
enclavia. Locks: none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit
from weakref import WeakSet

import pytest

from enclavia import AsyncClient, Client, Policy
from enclavia.testing import LocalEnclave

__all__ = ["LiveEnclave", "live_enclave"]

_TOKEN: Final = "ENCLAVIA_TOKEN"  # noqa: S105 - the name of one


def live_enclave(config: pytest.Config, path: str) -> LiveEnclave:
    if path == "":  # such as of a variable that is not set
        raise pytest.UsageError("--enclavia-live: expected the file of a policy, got an empty name")
    try:
        policy = Policy.load(Path(config.invocation_params.dir, path))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--enclavia-live: {error}") from None
    if policy.endpoint is None:
        raise pytest.UsageError(
            f"--enclavia-live: expected a policy with an endpoint, got {path} without one"
        )
    return LiveEnclave(policy, policy.endpoint)


class LiveEnclave:
    """A real enclave, in the place of a local one: what clients need, and nothing that only a local
    enclave can do. A test that asks for such a thing is skipped."""

    def __init__(self, policy: Policy, url: str) -> None:
        parts = urlsplit(url)
        self.policy = policy
        self.url = url
        self.host = parts.hostname or ""
        self.port = parts.port or (80 if parts.scheme in ("ws", "http") else 443)
        self.mode = policy.mode
        self.pcrs = policy.pins
        self.root = policy.root
        self._clients: WeakSet[Any] = WeakSet()

    def __repr__(self) -> str:
        return f"<the {self.mode} enclave {self.url}>"

    def client(self, **options: Any) -> Client:  # noqa: ANN401
        client = Client(self.url, **self._trusting(options))
        self._clients.add(client)
        return client

    def async_client(self, **options: Any) -> AsyncClient:  # noqa: ANN401
        client = AsyncClient(self.url, **self._trusting(options))
        self._clients.add(client)
        return client

    def _trusting(self, options: dict[str, Any]) -> dict[str, Any]:
        token = os.environ.get(_TOKEN) or None
        return {**self.policy.options(token=token), **options}

    def __getattr__(self, name: str) -> NoReturn:
        if not name.startswith("_") and hasattr(LocalEnclave, name):
            pytest.skip(
                f"--enclavia-live: enclave.{name} is something that only a local enclave has"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
