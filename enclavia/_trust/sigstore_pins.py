"""Pins that a team's pipeline has signed with Sigstore: a file with PCRs, or a statement that has
them, and the bundle that says who signed it and when.

What is signature, certificate and log is verified by the library ``sigstore``, without a network.
This module says what may be signed, and in which form. Nothing of a bundle is used that the library
has not verified: the PCRs come from the very bytes whose digest is signed, or from the payload that
the library returns.

Decides what a verified bundle has to say for its PCRs to be pins. Calls: _arguments, _errors,
_identity, _public, _text. Locks: none.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

from .._arguments import expect_file, path_text
from .._errors import SigstoreError
from .._identity.pcrs import Pcrs
from .._public import public
from .._text import shown, text_of
from .once import once

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from sigstore.models import Bundle
    from sigstore.verify import Verifier
    from sigstore.verify.policy import VerificationPolicy

__all__ = ["SigstorePins"]

Source = bytes | str
"""Content, or the path of a file with it."""

_MOST: Final = 1024 * 1024
_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
_PROVENANCE: Final = "https://slsa.dev/provenance/v1"
# Where the library keeps the trusted root of the public instance.
_STORE: Final = "sigstore._store"
_PUBLIC_INSTANCE: Final = "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev"


class _Fields(NamedTuple):
    pcrs: Source | None
    bundle: Source
    identity: str
    issuer: str
    repository: str | None
    ref: str | None
    subject: str | None
    predicate_type: str | None
    trusted_root: str | None


@public
class SigstorePins(_Fields):
    """PCRs that a known identity has signed with Sigstore, as ``pcrs=``; immutable.

    A function of the kind that :class:`PinSource` takes: :meth:`verify` is called when it is asked,
    and reads its files anew each time. Needs ``pip install 'enclavia[sigstore]'``; without it this
    is an ImportError.

    ``pcrs``: the path of the signed file, or its content as bytes: one JSON object with one set of
    PCRs, as ``nitro-cli build-enclave``, ``eif_build`` and ``enclavia enclave status --json`` print
    it. None: the PCRs are in the predicate of the bundle's statement; then ``predicate_type`` is
    needed.
    ``bundle``: the path of a Sigstore bundle (JSON, versions 0.1 to 0.3), or its content as bytes.
    It has a signature of the file itself, as ``sigstore sign`` makes it, or a statement of in-toto
    (v1), as GitHub's attesting actions make it, one of whose subjects has the file's SHA-256.
    ``identity``: the subject alternative name of the signing certificate, exactly: the URL of a
    workflow with its ref, or an e-mail address.
    ``issuer``: the URL of the OIDC issuer that vouches for the identity, exactly.
    ``repository``, ``ref``: the source repository's URL (``https://github.com/acme/enclave``) and
    the full ref (``refs/heads/main``) that the certificate has to name. None: not compared.
    ``subject``: the name that the statement has to give to the file (of a statement with PCRs in
    its predicate: to one of its subjects). None: any name.
    ``predicate_type``: the type of the statement's predicate. None: that of SLSA's provenance
    (``https://slsa.dev/provenance/v1``), or a signature without a statement.
    ``trusted_root``: the path of a ``trusted_root.json``. None: that of Sigstore's public instance,
    as the installed library has it.
    """

    __slots__ = ()

    def __new__(
        cls,
        *,
        pcrs: str | os.PathLike[str] | bytes | None = None,
        bundle: str | os.PathLike[str] | bytes,
        identity: str,
        issuer: str,
        repository: str | None = None,
        ref: str | None = None,
        subject: str | None = None,
        predicate_type: str | None = None,
        trusted_root: str | os.PathLike[str] | None = None,
    ) -> SigstorePins:
        if repository is not None and "://" not in _name("repository", repository):
            raise ValueError(
                "repository: expected its URL (https://github.com/acme/enclave), got "
                f"{shown(repository)!r}"
            )
        if ref is not None and not _name("ref", ref).startswith("refs/"):
            raise ValueError(f"ref: expected a full one (refs/heads/main), got {shown(ref)!r}")
        if predicate_type is not None:
            _name("predicate_type", predicate_type)
        elif pcrs is None:
            raise ValueError(
                "pcrs: expected a signed file, or predicate_type= of the statement that has the "
                "PCRs, got neither"
            )
        made = super().__new__(
            cls,
            None if pcrs is None else _source("pcrs", pcrs),
            _source("bundle", bundle),
            _name("identity", identity),
            _name("issuer", issuer),
            repository,
            ref,
            None if subject is None else _name("subject", subject),
            predicate_type,
            None if trusted_root is None else path_text("trusted_root", trusted_root, "a path"),
        )
        _expect_library()
        return made

    def verify(self) -> Pcrs:
        """Reads the files, at most 1 MiB each, and verifies them, without a network. Raises
        :class:`SigstoreError` (a ValueError) where they do not prove that the identity has signed
        these PCRs, and OSError where a file cannot be read."""
        content = None if self.pcrs is None else _content("pcrs", self.pcrs)
        raw = _content("bundle", self.bundle)
        from sigstore.models import Bundle  # a third of a second, which few programs need

        with _refusing("bundle: expected a Sigstore bundle"):
            bundle = Bundle.from_json(raw)
            said = json.loads(bundle.to_json())  # what the library has understood
        verifier = _verifier(self.trusted_root)
        if "messageSignature" in said:  # instead of a dsseEnvelope: a bundle has one of them
            return self._of_file(verifier, bundle, content)
        return self._of_statement(verifier, bundle, content)

    def __call__(self) -> Pcrs:
        """As :meth:`verify`: what a client does that asks for its pins."""
        return self.verify()

    def _of_file(self, verifier: Verifier, bundle: Bundle, content: bytes | None) -> Pcrs:
        for name, wanted in (("predicate_type", self.predicate_type), ("subject", self.subject)):
            if wanted is not None:
                _refuse("bundle", f"a statement, for {name}=", "the signature of a file")
        signed = cast(bytes, content)  # where there is none, there is a predicate_type
        with _refusing(self._expected("the file")):
            verifier.verify_artifact(signed, bundle, self._policy())
        return _pcrs_of(signed, "pcrs")

    def _of_statement(self, verifier: Verifier, bundle: Bundle, content: bytes | None) -> Pcrs:
        with _refusing(self._expected("the statement")):
            kind, payload = verifier.verify_dsse(bundle, self._policy())
        if kind != _PAYLOAD_TYPE:
            _refuse("bundle", f"a payload of type {_PAYLOAD_TYPE}", repr(shown(kind)))
        statement = _object(payload, "the statement")
        expected = _PROVENANCE if self.predicate_type is None else self.predicate_type
        for key, wanted in (("_type", _STATEMENT_TYPE), ("predicateType", expected)):
            if statement.get(key) != wanted:
                _refuse(f"the statement's {key}", wanted, _value(statement.get(key)))
        digests = self._digests(statement.get("subject"))
        if content is not None:
            digest = hashlib.sha256(content).hexdigest()
            if digest not in digests:
                _refuse(
                    "the statement",
                    f"a subject with the SHA-256 of the file, {digest}",
                    f"{len(digests)} others",
                )
            return _pcrs_of(content, "pcrs")
        predicate = statement.get("predicate")
        if not isinstance(predicate, dict):
            _refuse("the statement's predicate", "an object with PCRs", _value(predicate))
        return _pcrs_of(json.dumps(predicate).encode(), "the statement's predicate")

    def _digests(self, subjects: object) -> list[object]:
        """The SHA-256 of the subjects of the wanted name, of any one where no name is wanted."""
        if not isinstance(subjects, list) or not subjects:
            _refuse("the statement's subject", "an array of subjects", _value(subjects))
        digests: list[object] = []
        for subject in subjects:
            found = subject.get("digest") if isinstance(subject, dict) else None
            if not isinstance(found, dict):
                _refuse("the statement's subject", "a name and a digest", _value(subject))
            if self.subject is None or subject.get("name") == self.subject:
                digests.append(found.get("sha256"))
        if not digests:
            _refuse("the statement's subject", f"one named {self.subject!r}", "none of that name")
        return digests

    def _policy(self) -> VerificationPolicy:
        from sigstore.verify import policy

        rules: list[VerificationPolicy] = [
            policy.Identity(identity=self.identity, issuer=self.issuer)
        ]
        if self.repository is not None:
            rules.append(policy.OIDCSourceRepositoryURI(self.repository))
        if self.ref is not None:
            rules.append(policy.OIDCSourceRepositoryRef(self.ref))
        return policy.AllOf(rules)

    def _expected(self, what: str) -> str:
        return f"bundle: expected {what} signed by {self.identity} of {self.issuer}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, tuple(self)

    def __repr__(self) -> str:
        return (
            f"SigstorePins(pcrs={_repr(self.pcrs)}, bundle={_repr(self.bundle)}, "
            f"identity={self.identity!r}, issuer={self.issuer!r})"
        )


def _restore(*fields: Any) -> SigstorePins:  # noqa: ANN401 - checked again by what is called
    return SigstorePins(**dict(zip(_Fields._fields, fields, strict=True)))


def _repr(source: Source | None) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else repr(source)


# -- what was given -------------------------------------------------------------------------------


def _expect_library() -> None:
    """Imports it, so that a program hears of what is missing when it starts."""
    try:
        for module in ("sigstore.models", "sigstore.verify.policy"):
            importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != "sigstore":
            raise  # something that sigstore itself needs
        raise ImportError(
            "SigstorePins needs sigstore, which is not installed: pip install 'enclavia[sigstore]'",
            name=error.name,
        ) from None


def _source(name: str, value: object) -> Source:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return path_text(name, value, "a path, or content as bytes")


def _name(name: str, value: object) -> str:
    """A text that is compared with what is signed. An empty one could be taken for no rule."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected text, got {type(value).__name__}")
    if not value.strip() or not value.isprintable():
        got = repr(shown(value)[:40]) if value else "an empty one"
        raise ValueError(f"{name}: expected printable text, got {got}")
    return value


def _content(name: str, source: Source) -> bytes:
    if isinstance(source, bytes):
        content = source
    else:
        try:
            expect_file(name, source, "a file")
        except ValueError as error:
            raise SigstoreError(str(error)) from None
        with Path(source).open("rb") as file:
            content = file.read(_MOST + 1)
    if not content:
        _refuse(name, "content", "none: it is empty")
    if len(content) > _MOST:
        _refuse(name, f"at most {_MOST} bytes", "more")
    return content


def _verifier(trusted_root: str | None) -> Verifier:
    from sigstore.models import TrustedRoot
    from sigstore.verify import Verifier

    if trusted_root is not None:
        _content("trusted_root", trusted_root)  # which says what is wrong with a file
        with _refusing("trusted_root: expected a trusted_root.json of Sigstore"):
            return Verifier(trusted_root=TrustedRoot.from_file(trusted_root))
    with (
        _refusing("trusted_root: expected the one that the installed sigstore has, or a path"),
        resources.as_file(embedded_root()) as file,
    ):
        return Verifier(trusted_root=TrustedRoot.from_file(str(file)))


def embedded_root() -> Traversable:
    """That of the public instance in the installed package. The library's own way to it looks into
    a cache of the user's first, and writes one where there is none: then what is trusted would be
    decided by whoever ran another program before, and would not be the same on two machines."""
    return resources.files(_STORE).joinpath(_PUBLIC_INSTANCE, "trusted_root.json")


# -- what is signed -------------------------------------------------------------------------------


def _pcrs_of(content: bytes, name: str) -> Pcrs:
    """Of one JSON object and nothing around it. A release signs other files too, and a text with
    PCRs somewhere in it may show those of an example."""
    _object(content, name)
    try:
        return Pcrs.parse(content)
    except ValueError as error:
        raise SigstoreError(f"{name}: {error}") from None


def _object(content: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise SigstoreError(f"{name}: expected one JSON object, got {text_of(error)}") from None
    if not isinstance(value, dict):
        _refuse(name, "one JSON object", _value(value))
    return value


def _value(value: object) -> str:
    if isinstance(value, str):
        return repr(shown(value, 100))
    names = {type(None): "none", dict: "an object", list: "an array", bool: "true or false"}
    return names.get(type(value), "a number")


def _refuse(name: str, expected: str, got: str) -> NoReturn:
    raise SigstoreError(f"{name}: expected {expected}, got {got}")


@contextlib.contextmanager
def _refusing(expected: str) -> Iterator[None]:
    """Around the library. Whatever it raises of a bundle that others have made is a refusal: it has
    errors of its own, and those of certificates, of models and of JSON come through it."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise SigstoreError(
            f"{expected}, got one that is refused ({type(error).__name__}): {text_of(error)}"
        ) from error
