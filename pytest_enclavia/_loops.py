"""Which event loop an asynchronous test runs in, and so by whom its client is closed.

Decides between anyio's plugin and pytest-asyncio. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import inspect

import pytest

__all__ = ["asyncio_fixture", "fixture_for", "has_loop_scopes"]


def asyncio_fixture(scope: str) -> str:
    return f"_enclavia_asyncio_client_{scope}"


def has_loop_scopes(config: pytest.Config) -> bool:
    """Whether the fixtures of this pytest-asyncio take the scope of a loop: those of 0.24 do."""
    fixture = getattr(config.pluginmanager.get_plugin("asyncio"), "fixture", None)
    return fixture is not None and "loop_scope" in inspect.signature(fixture).parameters


def fixture_for(request: pytest.FixtureRequest) -> str:
    """The name of the fixture that makes the client in the loop of this test."""
    asyncio = has_loop_scopes(request.config)
    marker = request.node.get_closest_marker("asyncio")
    if "anyio_backend" in request.fixturenames and marker is None:
        return "_enclavia_anyio_client"
    if asyncio and (marker is not None or _is_awaited(request.node)):
        return asyncio_fixture(_scope(request.config, marker))
    pytest.fail(
        "async_enclave_client needs a test that runs in an event loop: an async function that is "
        "marked with @pytest.mark.anyio (anyio's plugin), or with @pytest.mark.asyncio "
        "(pytest-asyncio 0.24 or later, which is "
        + ("installed)" if asyncio else "not installed)"),
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
