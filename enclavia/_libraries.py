"""Loads the C extension, and says what to install where a library that it was built with is gone.

Wheels carry their libraries; an extension that was built from source finds those of the system, by
the versions that were there when it was built. The package names are those of Debian 12 and 13,
Fedora and Alpine.

Decides which library an ImportError is about, and what a user is to install. Calls: nothing of the
package. Locks: none.
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


# What the loaders of glibc and musl say.
_FILE = re.compile(r"\b(lib[a-z]+)\.so[.\d]*")
_VERSION = re.compile(r"\blib[a-z]+\.so[.\d]*: version `[^']+' not found")
_SYMBOL = re.compile(r"undefined symbol: (\w+)|(\w+): symbol not found")
_PREFIXES = {
    "cbor_": "libcbor",
    "crypto_": "libsodium",
    "lws_": "libwebsockets",
    "randombytes_": "libsodium",
    "sodium_": "libsodium",
}
_GONE = ("which this system does not have (any more)", "Install it")
_OTHER = ("of which this system has another release", "Install or upgrade it")


def _culprit(said: str) -> tuple[str, str, tuple[str, str]] | None:
    """The library, how it is to be named to the user, and what is wrong with it."""
    if (file := _FILE.search(said)) and file[1] in PACKAGES:
        return file[1], file[0], _OTHER if _VERSION.search(said) else _GONE
    if symbol := _SYMBOL.search(said):
        name = symbol[1] or symbol[2]
        for prefix, library in _PREFIXES.items():
            if name.startswith(prefix):
                return library, library, _OTHER
    return None


def explained(error: ImportError) -> ImportError:
    """The same error where nothing is known about it; otherwise one that says what to install."""
    found = _culprit(str(error))
    if found is None:
        return error
    library, shown, (state, remedy) = found
    debian, fedora, alpine = PACKAGES[library]
    return ImportError(
        f"enclavia was built from source with {shown}, {state}. "
        f"{remedy} (Debian and Ubuntu: {debian}; Fedora: {fedora}; "
        f"Alpine: {alpine}), or build again with "
        "`pip install --force-reinstall --no-binary enclavia enclavia`, or "
        f"install a wheel, which needs none of the system's libraries. The loader said: {error}",
        name=error.name,
        path=error.path,
    )
