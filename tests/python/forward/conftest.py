"""Every test of a forwarder is run twice: with uvloop's event loop, and where uvloop is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from enclavia._forward import loop


@pytest.fixture(scope="module", autouse=True, params=["uvloop", "asyncio"])
def own_loop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Of the forwarders in this process, and in the programs that a test starts."""
    kind: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        if kind == "asyncio":
            patch.setattr(loop, "_LIBRARY", "no_such_library")
            hides = tmp_path_factory.mktemp("hides")
            (hides / "uvloop.py").write_text("raise ImportError('hidden by a test')\n")
            others = [folder for folder in sys.path if folder]
            patch.setenv("PYTHONPATH", os.pathsep.join([str(hides), *others]))
        else:
            pytest.importorskip("uvloop")
        yield kind
