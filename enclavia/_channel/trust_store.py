"""Where this machine keeps the certificate authorities for the outer TLS connection.

OpenSSL looks in one file and one folder, whose names were compiled into it. A library of the
distribution's own knows the right ones; one that came in a wheel knows those of Debian, and meets
other distributions too. So where OpenSSL's own places are empty, the bundles of the common systems
are tried, and last certifi's, which follows Mozilla's list as the others do but is only as new as
the package.

``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` come before all of this, as OpenSSL's documentation
(SSL_CTX_set_default_verify_paths(3)) says.

Decides which file is used; OpenSSL reads it and checks certificates. Calls: _core, _errors. Locks:
none.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

from .. import _core
from .._errors import ConnectError

__all__ = ["BUNDLES", "ca_file", "ca_store"]

BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch, Gentoo
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL 7 and newer
    "/etc/pki/tls/certs/ca-bundle.crt",  # older Fedora and RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE, SUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS, OpenBSD
    "/etc/pki/tls/cert.pem",  # RHEL, Amazon Linux
    "/usr/local/etc/openssl/cert.pem",  # Homebrew on Intel
    "/opt/homebrew/etc/openssl@3/cert.pem",  # Homebrew on Apple silicon
)
_HASHED = r"[0-9a-f]{8}\.\d+"


def ca_file(environ: Mapping[str, str] = os.environ) -> str | None:
    """The bundle to use, or None where OpenSSL finds the authorities by itself.

    Raises:
        ConnectError: there is none; the message says where was looked.
    """
    default_file, default_dir = _core.default_ca_paths()
    file, folder = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if file is not None or folder is not None:
        looked = [path for path in (file, folder) if path]
        if _has_file(file) or any(map(_has_hashed, (folder or "").split(os.pathsep))):
            return None
        raise _none_found("SSL_CERT_FILE and SSL_CERT_DIR", looked)
    if _has_file(default_file) or _has_hashed(default_dir):
        return None
    for bundle in BUNDLES:
        if _has_file(bundle):
            return bundle
    found = _of_certifi()
    if found is None:
        raise _none_found("the machine", [default_file, default_dir, *BUNDLES, "certifi"])
    return found


def ca_store() -> str:
    """The file or the folder with the certificate authorities that outer TLS connections are
    checked with where ``verify`` is True. Of ``SSL_CERT_DIR``, which may name several folders, the
    first that has any.

    Raises:
        ConnectError: there is none; the message says where was looked.
    """
    bundle = ca_file()
    if bundle is not None:
        return bundle
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file is None and folder is None:
        file, folder = _core.default_ca_paths()
    if file is not None and _has_file(file):
        return file
    return next(each for each in (folder or "").split(os.pathsep) if _has_hashed(each))


def _has_file(path: str | None) -> bool:
    try:
        return bool(path) and os.stat(path).st_size > 0  # type: ignore[arg-type]
    except (OSError, ValueError):
        return False


def _has_hashed(folder: str) -> bool:
    """A folder that OpenSSL can look things up in: files that are named by their subject's hash."""
    try:
        with os.scandir(folder) as entries:
            return any(re.fullmatch(_HASHED, entry.name) for entry in entries)
    except (OSError, ValueError):
        return False


def _of_certifi() -> str | None:
    if importlib.util.find_spec("certifi") is None:
        return None
    import certifi  # only where nothing else was found: importing it costs time

    path = certifi.where()
    return path if Path(path).is_file() else None


def _none_found(where: str, looked: list[str]) -> ConnectError:
    places = ", ".join(dict.fromkeys(looked)) or "nothing: they are empty"
    return ConnectError(
        f"expected certificate authorities to check TLS connections with, got none from {where}. "
        "Install the system's ca-certificates, set SSL_CERT_FILE, or give verify= the path of a CA "
        f"file. Looked at: {places}",
        retryable=False,
    )
