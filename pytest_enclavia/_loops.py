"""Which event loop an asynchronous test runs in, and so by whom its client is closed.

Decides between anyio's plugin and pytest-asyncio. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import inspect

import pytest

__all__ = ["asyncio_fixture", "fixture_for"]


def asyncio_fixture(scope: str) -> str:
    return f"_enclavia_asyncio_client_{scope}"


def fixture_for(request: pytest.FixtureRequest) -> str:
    """The name of the fixture that makes the client in the loop of this test."""
    asyncio = request.config.pluginmanager.hasplugin("asyncio")
    marker = request.node.get_closest_marker("asyncio")
    if "anyio_backend" in request.fixturenames and marker is None:
        return "_enclavia_anyio_client"
    if asyncio and (marker is not None or _is_awaited(request.node)):
        return asyncio_fixture(_scope(request.config, marker))
    pytest.fail(
        "async_enclave_client needs a test that runs in an event loop: an async function that is "
        "marked with @pytest.mark.anyio (anyio's plugin), or with @pytest.mark.asyncio "
        "(pytest-asyncio, which is " + ("installed)" if asyncio else "not installed)"),
        pytrace=False,
    )


def _is_awaited(node: object) -> bool:
    """In its automatic mode pytest-asyncio runs every async function."""
    return inspect.iscoroutinefunction(getattr(node, "function", None))


def _scope(config: pytest.Config, marker: pytest.Mark | None) -> str:
    said = None
    if marker is not None:
        said = marker.kwargs.get("loop_scope") or marker.kwargs.get("scope")
    if said is None:
        try:
            said = config.getini("asyncio_default_test_loop_scope")
        except (KeyError, ValueError):  # a release that does not know it
            said = None
    return str(said or "function")
