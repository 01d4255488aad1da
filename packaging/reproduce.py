"""Builds a wheel twice from nothing and compares: ``python packaging/reproduce.py [NAME…]``.

Each build has a clone, a folder, a compiler's cache, a time zone, a language, a mask for new files
and a name of the commit that differ from the other's, and builds all libraries. What they share is
the machine, the versions of the tools, and the archives of the sources. The wheels must be the same
bytes; where they are not, it is said which files in them differ, and both builds are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import libraries

ROOT = Path(__file__).resolve().parents[1]
ARCHIVES = Path("build", "wheels", "sources", "archives")


class Surroundings(NamedTuple):
    """What a build must not be able to tell from its result."""

    folder: str
    zone: str
    language: str
    mask: int
    jobs: str


FIRST = Surroundings("a", "UTC", "C", 0o022, "1")
SECOND = Surroundings("another-folder/b", "Asia/Kathmandu", "C.UTF-8", 0o077, "2")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def clone(here: Surroundings, into: Path) -> Path:
    tree = into / here.folder
    tree.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, tree], check=True)
    # What asks git for the name of this commit gets another answer in each clone.
    subprocess.run(["git", "-C", tree, "tag", f"in-{here.folder.replace('/', '-')}"], check=True)
    if (ROOT / ARCHIVES).is_dir():
        shutil.copytree(ROOT / ARCHIVES, tree / ARCHIVES)
    return tree


def build(here: Surroundings, into: Path, names: list[str]) -> Path:
    """The folder of the wheels that were made there."""
    tree = clone(here, into)
    out = tree / "dist"
    env = os.environ | {
        "TZ": here.zone,
        "LANG": here.language,
        "ENCLAVIA_JOBS": here.jobs,
        "ZIG_GLOBAL_CACHE_DIR": str(tree / "build" / "zig-global"),
        "ZIG_LOCAL_CACHE_DIR": str(tree / "build" / "zig-local"),
    }
    subprocess.run(
        [sys.executable, tree / "packaging" / "wheels.py", "--only", *names, "--out", out],
        cwd=into,
        env=env,
        umask=here.mask,
        check=True,
    )
    return out


def different(one: Path, other: Path) -> list[str]:
    """What differs between two wheels; nothing where they are the same bytes."""
    if one.read_bytes() == other.read_bytes():
        return []
    with zipfile.ZipFile(one) as a, zipfile.ZipFile(other) as b:
        inside = [{entry.filename: entry for entry in wheel.infolist()} for wheel in (a, b)]
        found = [
            f"{name}: contents"
            for name in sorted(inside[0].keys() & inside[1].keys())
            if a.read(name) != b.read(name)
        ]
        found += [f"{name}: in one only" for name in sorted(inside[0].keys() ^ inside[1].keys())]
        found += [
            f"{name}: mode {inside[0][name].external_attr >> 16:o} and "
            f"{inside[1][name].external_attr >> 16:o}, time {inside[0][name].date_time} and "
            f"{inside[1][name].date_time}"
            for name in sorted(inside[0].keys() & inside[1].keys())
            if inside[0][name].external_attr != inside[1][name].external_attr
            or inside[0][name].date_time != inside[1][name].date_time
        ]
    return found or ["the order of the files, or how they are compressed"]


def say(wheel: Path) -> None:
    print(f"{digest(wheel.read_bytes())}  {wheel.name}")
    with zipfile.ZipFile(wheel) as file:
        for name in file.namelist():
            if name.endswith(".so"):
                print(f"{digest(file.read(name))}    {name}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    choices = list(libraries.TARGETS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(choices)}")
    names = parser.parse_args().names or ["manylinux-x86_64"]
    into = Path(tempfile.mkdtemp(prefix="reproduce-"))
    made = [build(here, into, names) for here in (FIRST, SECOND)]
    wrong = []
    for wheel in sorted(made[0].glob("*.whl")):
        say(wheel)
        wrong += [f"{wheel.name}: {what}" for what in different(wheel, made[1] / wheel.name)]
    if wrong:
        print(f"expected the same bytes twice; differing, in {into}:\n  " + "\n  ".join(wrong))
        return 1
    print("the same bytes twice")
    shutil.rmtree(into)
    return 0


if __name__ == "__main__":
    sys.exit(main())
