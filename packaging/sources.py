"""Fetches the pinned sources of the libraries that wheels carry, and unpacks them.

``python packaging/sources.py DIR`` leaves ``DIR/<folder>`` for each library of sources.toml.
Nothing is used whose SHA-256 differs from the pinned one. The machine's own package clients do
the fetching, with the mirrors they are set up for: apt (another release of the same archive, in
lists of its own, so that the machine's package lists stay as they are) and cargo.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Edit(NamedTuple):
    """A change to a released source, for a fault that no release has mended yet."""

    file: str
    old: str
    new: str


class Source(NamedTuple):
    name: str
    version: str
    file: str
    folder: str
    sha256: str
    client: str
    package: str
    suites: tuple[str, ...]
    edits: tuple[Edit, ...]
    # What a package that carries it has to say.
    spdx: str = ""
    licence: str = ""
    cpe: str = ""


PINS = HERE / "sources.toml"


def pinned(pins: Path = PINS) -> list[Source]:
    table = tomllib.loads(pins.read_text())
    found = []
    for name, entry in table.items():
        fetch = entry.pop("fetch")
        edits = tuple(Edit(**edit) for edit in entry.pop("edits", ()))
        found.append(
            Source(
                name=name,
                client=fetch["client"],
                package=fetch["package"],
                suites=tuple(fetch.get("suites", ())),
                edits=edits,
                **entry,
            )
        )
    return found


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_right(source: Source, path: Path) -> bool:
    return path.is_file() and digest(path) == source.sha256


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def archive_of_this_machine() -> str:
    """The address of the Debian archive that apt uses here, for sources of another release."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)"]
    for line in run(*command, cwd=HERE).splitlines():
        address, _, label = line.partition(" ")
        if label == "Debian Debian":
            return address
    raise SystemExit("expected apt to be set up for a Debian archive, got none")


def apt_of(
    kind: str, suites: Iterable[str], cache: Path, architecture: str | None = None
) -> list[str]:
    """apt-get with the lists of other releases, which leaves this machine's alone. ``kind``:
    "deb" or "deb-src"; ``architecture``: this machine's, where none is given."""
    lists = cache / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (lists / folder).mkdir(parents=True, exist_ok=True)
    address = archive_of_this_machine()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (lists / "sources.list").write_text(
        "".join(f"{kind} [signed-by={keyring}] {address} {suite} main\n" for suite in suites)
    )
    options = []
    for option in (
        f"Dir::Etc::SourceList={lists}/sources.list",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::Lists={lists}/lists",
        f"Dir::Cache={lists}/cache",
        "APT::Sandbox::User=root",
        *([] if architecture is None else [f"APT::Architecture={architecture}"]),
    ):
        options += ["-o", option]
    run("apt-get", *options, "update", cwd=cache)
    return ["apt-get", *options]


def fetch_by_apt(source: Source, cache: Path) -> Path:
    apt = apt_of("deb-src", source.suites, cache)
    run(*apt, "source", "--download-only", "--tar-only", source.package, cwd=cache)
    return cache / source.file


def binary_package(name: str, suite: str, architecture: str, cache: Path) -> Path:
    """A package of another release of Debian. apt verifies it."""
    apt = apt_of("deb", [suite], cache, architecture)
    folder = cache / f"{name}-{architecture}"
    shutil.rmtree(folder, ignore_errors=True)  # an older version may be there
    folder.mkdir()
    run(*apt, "download", name, cwd=folder)
    return next(folder.glob("*.deb"))


def fetch_by_cargo(source: Source, cache: Path) -> Path:
    crate, _, version = source.package.partition("=")
    folder = cache / "crate"
    (folder / "src").mkdir(parents=True, exist_ok=True)
    (folder / "src" / "lib.rs").touch()
    (folder / "Cargo.toml").write_text(
        '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n'
        f'[dependencies]\n{crate} = "={version}"\n'
    )
    run("cargo", "vendor", "--quiet", "vendor", cwd=folder)
    found = folder / "vendor" / crate / source.file
    return Path(shutil.copy(found, cache / source.file))


def fetch(source: Source, cache: Path) -> Path:
    """The verified archive, from the cache where it is there already."""
    kept = cache / source.file
    if not is_right(source, kept):
        cache.mkdir(parents=True, exist_ok=True)
        kept = {"apt": fetch_by_apt, "cargo": fetch_by_cargo}[source.client](source, cache)
    if not is_right(source, kept):
        raise SystemExit(
            f"{source.name} {source.version}: expected SHA-256 {source.sha256}, got {digest(kept)} "
            f"of {kept}; look at why before the pin is changed"
        )
    return kept


def unpack(source: Source, archive: Path, into: Path) -> Path:
    """The source as it is built; unpacked again where the pin or an edit is not what it was."""
    folder = into / source.folder
    stamp = folder / ".unpacked"
    made_of = f"{source.sha256} {source.edits}"
    if not stamp.is_file() or stamp.read_text() != made_of:
        shutil.rmtree(folder, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")
        for each in source.edits:
            edit(folder, each)
        stamp.write_text(made_of)
    return folder


def edit(folder: Path, change: Edit) -> None:
    path = folder / change.file
    text = path.read_text()
    if text.count(change.old) != 1:
        raise SystemExit(f"{path}: expected {change.old!r} once; is the edit still needed?")
    path.write_text(text.replace(change.old, change.new))


def all_unpacked(into: Path, pins: Path = PINS) -> dict[str, Path]:
    into.mkdir(parents=True, exist_ok=True)
    return {s.name: unpack(s, fetch(s, into / "archives"), into) for s in pinned(pins)}


if __name__ == "__main__":
    for name, folder in all_unpacked(Path(sys.argv[1]).resolve()).items():
        print(name, folder)
