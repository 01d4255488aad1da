"""Loads the C extension, and says what to install where a library that it was built with is gone.

Wheels carry their libraries; an extension that was built from source finds those of the system, by
the versions that were there when it was built. The package names are those of Debian 12 and 13,
Fedora and Alpine.

Decides which package is named. Calls: nothing of the package. Locks: none.
"""

from __future__ import annotations

import re

__all__ = ["explained"]

PACKAGES = {
    "libsodium": ("libsodium23", "libsodium", "libsodium"),
    "libwebsockets": ("libwebsockets17 or libwebsockets19t64", "libwebsockets", "libwebsockets"),
    "libcbor": ("libcbor0.8 or libcbor0.10", "libcbor", "libcbor"),
    "libssl": ("libssl3 or libssl3t64", "openssl-libs", "libssl3"),
    "libcrypto": ("libssl3 or libssl3t64", "openssl-libs", "libcrypto3"),
    "libcap": ("libcap2", "libcap", "libcap2"),
}


def explained(error: ImportError) -> ImportError:
    """The same error where nothing is known about it; otherwise one that says what to install."""
    found = re.search(r"\b(lib[a-z]+)\.so[.\d]*", str(error))
    if found is None or found[1] not in PACKAGES:
        return error
    debian, fedora, alpine = PACKAGES[found[1]]
    return ImportError(
        f"enclavia was built from source with {found[0]}, which this system does not have "
        f"(any more). Install it (Debian and Ubuntu: {debian}; Fedora: {fedora}; "
        f"Alpine: {alpine}), or build again with "
        "`pip install --force-reinstall --no-binary enclavia enclavia`, or "
        f"install a wheel, which needs none of the system's libraries. The loader said: {error}",
        name=error.name,
        path=error.path,
    )
