"""Builds the source distribution and the wheels: ``python packaging/wheels.py [--only NAME…] [--out
DIR]``.

Everything is built below ``build/wheels`` from what is committed (HEAD), in the order sources,
libraries, source distribution, and from that the extension and the wheel. Two builds with the same
tools give the same bytes (``reproduce.py`` tries it): times and permissions are set, and no folder
or commit of this machine gets into a binary. A wheel that carries a symbol or a dependency that it
should not, or lacks a protection, is refused here (``check.py``), before anybody can install it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import check
import libraries
import sbom
import sources

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "wheels"


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def commit_time() -> str:
    return run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()


def export_tree(into: Path) -> Path:
    """What is committed, without what lies about in the working tree."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    archive = into.with_suffix(".tar")
    run("git", "archive", "--format=tar", "-o", str(archive), "HEAD", cwd=ROOT)
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    archive.unlink()
    return into


def unpack_sdist(sdist: Path, into: Path) -> Path:
    shutil.rmtree(into, ignore_errors=True)
    with tarfile.open(sdist) as tar:
        tar.extractall(into, filter="data")
    return next(into.iterdir())


def python_headers(into: Path) -> Path:
    """The building interpreter's headers with its own pyconfig.h in place of one that chooses by
    architecture: under the limited API it serves every 64-bit little-endian Linux."""
    if not into.is_dir():
        shutil.copytree(sysconfig.get_path("include"), into)
        shutil.copy(sysconfig.get_config_h_filename(), into / "pyconfig.h")
    return into


def build_sdist(tree: Path, out: Path, epoch: str) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    env = os.environ | {"SOURCE_DATE_EPOCH": epoch}
    run(
        sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(out), ".",
        cwd=tree, env=env,
    )  # fmt: skip
    made = next(out.glob("*.tar.gz"))
    normalise_sdist(made, int(epoch))
    return made


def normalise_sdist(path: Path, epoch: int) -> None:
    """The same members with times and owners that do not depend on when and where it was made."""
    import gzip
    import io

    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m).read() if m.isfile() else b"") for m in tar]  # type: ignore[union-attr]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in sorted(members, key=lambda pair: pair[0].name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            tar.addfile(member, io.BytesIO(data))
    with path.open("wb") as out, gzip.GzipFile("", "wb", 9, out, mtime=epoch) as packed:
        packed.write(plain.getvalue())


def build_raw_wheel(tools: libraries.Toolchain, tree: Path, epoch: str) -> Path:
    out = tools.work / "raw"
    shutil.rmtree(out, ignore_errors=True)
    env = tools.env() | {
        "SOURCE_DATE_EPOCH": epoch,
        "LDSHARED": "encl-link",
        "_PYTHON_HOST_PLATFORM": tools.target.host_platform,
        "ENCLAVIA_INCLUDE": str(python_headers(BUILD / f"python-{platform.python_version()}")),
        "ENCLAVIA_PLATFORM": tools.target.platform_tag,
        "ENCLAVIA_CFLAGS": libraries.HARDENED,
    }
    # The options of the compiler that made this interpreter may be unknown to clang.
    env |= {"CFLAGS": "", "OPT": "-DNDEBUG"}
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), ".",
        cwd=tree, env=env,
    )  # fmt: skip
    check.objects(tree / "build")
    return next(out.glob("*.whl"))


def add_licences(
    info: Path, unpacked: dict[str, Path], carried: list[sources.Source] | None = None
) -> None:
    """The licence of each library beside the project's own, and named in the metadata (PEP 639)."""
    named = []
    for source in sources.pinned() if carried is None else carried:
        name = f"{source.name}-{source.version}-{source.licence}"
        shutil.copy(unpacked[source.name] / source.licence, info / "licenses" / name)
        named.append(f"License-File: {name}\n")
    metadata = info / "METADATA"
    head, blank, body = metadata.read_text().partition("\n\n")
    lines = head.splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if line.startswith("License-File:"))
    if not lines[last].endswith("\n"):
        lines[last] += "\n"
    lines[last + 1 : last + 1] = named
    metadata.write_text("".join(lines).rstrip("\n") + blank + body)


def set_modes(tree: Path) -> None:
    """The permissions that are packed depend on nobody's mask for new files."""
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.suffix == ".so" else 0o644)


def finish_wheel(raw: Path, tools: libraries.Toolchain, unpacked: dict[str, Path], out: Path,
                 epoch: str) -> Path:  # fmt: skip
    """Licences and the list of what is inside are added, and the platform's tag is set."""
    env = os.environ | {"SOURCE_DATE_EPOCH": epoch}
    folder = tools.work / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "wheel", "unpack", "-d", str(folder), str(raw), cwd=ROOT)
    tree = next(folder.iterdir())
    info = next(tree.glob("*.dist-info"))
    add_licences(info, unpacked)
    (info / "sboms").mkdir()
    (info / "sboms" / "enclavia.cdx.json").write_text(
        sbom.document(sources.pinned(), run_version(), tools.target.platform_tag, int(epoch))
    )
    extension = next((tree / "enclavia").glob("_core*.so"))
    check.binary(extension, tools.target)
    set_modes(tree)
    run(sys.executable, "-m", "wheel", "pack", "-d", str(folder), str(tree), cwd=ROOT, env=env)
    packed = next(folder.glob("*.whl"))
    name = run(
        sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag",
        tools.target.platform_tag, str(packed), cwd=ROOT, env=env,
    ).split()[-1]  # fmt: skip
    return Path(shutil.move(folder / name, out / name))


def run_version() -> str:
    import tomllib

    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def build_wheel(name: str, sdist: Path, unpacked: dict[str, Path], out: Path, epoch: str) -> Path:
    """From the source distribution, so that one that lacks a file is noticed."""
    target = libraries.TARGETS[name]
    tools = libraries.build_all(
        target, unpacked, prefix=BUILD / name / "prefix", work=BUILD / name / "work"
    )
    check.assembler(tools.work / "openssl", target)
    tree = unpack_sdist(sdist, BUILD / name / "tree")
    raw = build_raw_wheel(tools, tree, epoch)
    return finish_wheel(raw, tools, unpacked, out, epoch)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(libraries.TARGETS),
        metavar="NAME",
        help=f"build these wheels instead of all: {', '.join(libraries.TARGETS)}",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    epoch = commit_time()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    unpacked = sources.all_unpacked(BUILD / "sources")
    sdist = build_sdist(export_tree(BUILD / "sdist"), BUILD / "made", epoch)
    made = [] if args.only else [Path(shutil.copy(sdist, out))]
    made += [
        build_wheel(name, sdist, unpacked, out, epoch) for name in args.only or libraries.TARGETS
    ]
    check.packages(made)
    for path in made:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.stat().st_size:>9,}  {path}")


if __name__ == "__main__":
    main()
