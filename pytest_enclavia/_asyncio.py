"""What ``async_enclave_client`` is in tests of pytest-asyncio. Registered where that is loaded.

Decides nothing: there is one fixture for each loop that a test may run in. Calls: _loops. Locks:
none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import pytest_asyncio

from ._loops import asyncio_fixture

if TYPE_CHECKING:
    from enclavia import AsyncClient
    from enclavia.testing import LocalEnclave

_SCOPES: Final = ("function", "class", "module", "package", "session")


def _make(scope: Any) -> Any:  # noqa: ANN401
    @pytest_asyncio.fixture(loop_scope=scope, name=asyncio_fixture(scope))
    async def client_of(enclave: LocalEnclave) -> AsyncIterator[AsyncClient]:
        client = enclave.async_client()
        yield client
        await client.aclose()

    return client_of


for _scope in _SCOPES:
    globals()[asyncio_fixture(_scope)] = _make(_scope)
