"""What this build of the package is made of.

Decides nothing: it hands on what the core reports. Calls: _core. Locks: none.
"""

from __future__ import annotations

from . import _core

__all__ = ["build_info"]


def build_info() -> dict[str, str]:
    """Versions and properties of this build, for bug reports and for watching what is carried.

    ``openssl``, ``libsodium``, ``libwebsockets``: the versions that run; each also with the ending
    ``_compiled``: the version it was compiled against. ``libcbor_compiled`` (libcbor does not tell
    the one that runs). ``compiler``; ``platform``: the tag of the wheel, or ``source``; ``codec``:
    which loop decodes payloads on this processor (``ssse3``, ``neon`` or ``plain``).
    """
    return _core.build_info()
