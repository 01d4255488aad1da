"""Tries the wheels on systems that have none of the libraries: ``python packaging/roots.py
[NAME…]``.

Each root is a Debian release in a folder of its own (debootstrap; another architecture runs under
qemu-user), or a system with musl (musl.py), so only root can run this, and only on Debian. Where it
has no Python that is new enough, one is built for it (interpreter.py). What pip installs there is
downloaded by this machine's pip for the root's platform, and installed without a network. Then the
demo and a part of the tests run in it.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import interpreter
import musl
from sources import archive_of_this_machine

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "build" / "wheels"
BUILD = WHEELS / "roots"

# Libraries that a wheel carries and that no root may have. (Debian's Python brings OpenSSL's.)
CARRIED = ("libsodium", "libwebsockets", "libcbor")
# Without trio, which needs ctypes: an interpreter that is built for a root has none.
NEEDED_BY_TESTS = "pytest hypothesis starlette httpx2[ws]>=2.12 websockets cbor2 uvloop".split()
# By the names of their files, wherever below tests they lie.
TESTS = """
channel tls trust_store attestation build_info enclave enclave_faults enclave_slow
client bodies hosts many_at_once reconnecting timeouts
""".split()
# A test that hangs ends the run, and the log has what each thread was doing. It has ten minutes,
# because an emulator is slow.
PYTEST = (
    "v/bin/python -m pytest -v -p no:cacheprovider -k 'not trio' "
    "-o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true"
)
COPIED = ("tests", "packaging/sources.toml", "pyproject.toml", "docs/examples/demo.py")


class Root(NamedTuple):
    suite: str
    """Debian's release, or "musl"."""
    debian: str
    """What Debian calls the architecture."""
    machine: str
    """What a wheel's tag calls it."""
    python: str
    libc: tuple[int, int]
    """The version of its C library, as tags count it."""
    builds_for: str | None = None
    """The target for which its Python is built; None where it brings its own."""

    @property
    def is_musl(self) -> bool:
        return self.suite == "musl"

    @property
    def interpreter(self) -> str:
        return (
            "/usr/bin/python3" if self.builds_for is None else f"{interpreter.PREFIX}/bin/python3"
        )


ROOTS = {
    "bullseye-amd64": Root("bullseye", "amd64", "x86_64", "3.13", (2, 31), "manylinux-x86_64"),
    "bookworm-amd64": Root("bookworm", "amd64", "x86_64", "3.11", (2, 36)),
    "trixie-amd64": Root("trixie", "amd64", "x86_64", "3.13", (2, 41)),
    "bookworm-arm64": Root("bookworm", "arm64", "aarch64", "3.11", (2, 36)),
    "musl-amd64": Root("musl", "amd64", "x86_64", "3.13", (1, 2), "musllinux-x86_64"),
    "musl-arm64": Root("musl", "arm64", "aarch64", "3.13", (1, 2), "musllinux-aarch64"),
}


def run(*command: str, log: Path | None = None) -> str:
    """``log`` grows while the command runs, so it tells how far one that hangs has come."""
    with tempfile.NamedTemporaryFile() as unnamed:
        told = Path(unnamed.name) if log is None else log
        with told.open("w") as file:
            done = subprocess.run(command, check=False, stdout=file, stderr=subprocess.STDOUT)
        text = told.read_text(errors="replace")
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-8000:]}")
    return text


def debootstrap(where: Path, name: str, root: Root) -> None:
    packages = "ca-certificates" if root.builds_for else "python3-venv,ca-certificates"
    run(
        "debootstrap", "--variant=minbase", f"--arch={root.debian}",
        f"--include={packages}", root.suite, str(where),
        archive_of_this_machine(), log=BUILD / f"{name}.log",
    )  # fmt: skip


def let_run(machine: str, kernel: Path = Path("/proc/sys/fs/binfmt_misc")) -> None:
    """Has the kernel run programs of another architecture by qemu-user. Debian's packages register
    that when they are installed and when a machine starts; a machine without an init system, such
    as a container, does neither and has not mounted what they register it by."""
    if machine == platform.machine():
        return
    if not (kernel / "register").exists():
        run("mount", "-t", "binfmt_misc", "binfmt_misc", str(kernel))
    if not (kernel / f"qemu-{machine}").exists():
        run("update-binfmts", "--enable", f"qemu-{machine}")


def make(name: str, root: Root) -> Path:
    where = BUILD / name
    let_run(root.machine)
    if not (where / "made").exists():
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        if root.is_musl:
            musl.make(where, root.machine, root.debian, WHEELS / "packages")
        else:
            debootstrap(where, name, root)
        if root.builds_for is not None:
            interpreter.install(root.builds_for, where, WHEELS)
        (where / "made").touch()
    (where / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # debootstrap writes none
    found = [path for stem in CARRIED for path in where.glob(f"usr/lib/*/{stem}*.so*")]
    if found:
        raise SystemExit(f"{name}: expected none of the libraries, got {found}")
    return where


def platforms(root: Root) -> list[str]:
    """The tags that this root's pip would take, newest first."""
    major, newest = root.libc
    if root.is_musl:
        tags = [f"musllinux_{major}_{minor}_{root.machine}" for minor in range(newest, -1, -1)]
        return [*tags, "any"]
    tags = [f"manylinux_{major}_{minor}_{root.machine}" for minor in range(newest, 4, -1)]
    return [*tags, f"manylinux2014_{root.machine}", "any"]


def download(root: Root, wheel: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={root.python}"]
    options += [f"--abi=cp{root.python.replace('.', '')}", "--abi=abi3", "--abi=none"]
    options += [f"--platform={tag}" for tag in platforms(root)]
    wanted = [f"enclavia[testing] @ {wheel.as_uri()}", *NEEDED_BY_TESTS]
    run(sys.executable, "-m", "pip", "download", "--quiet", *options, "-d", str(into), *wanted)


@contextmanager
def mounted(where: Path) -> Iterator[None]:
    """/proc, /dev and /sys as programs expect them; gone again whatever happens."""
    done: list[Path] = []
    try:
        for kind, name in (("proc", "proc"), ("sysfs", "sys")):
            run("mount", "-t", kind, kind, str(where / name))
            done.append(where / name)
        run("mount", "--rbind", "--make-rslave", "/dev", str(where / "dev"))
        done.append(where / "dev")
        yield
    finally:
        for path in reversed(done):
            subprocess.run(["umount", "--recursive", "--lazy", str(path)], check=False)


def chosen(tree: Path) -> list[str]:
    """The files of the chosen tests, relative to the tree that holds the folder tests."""
    found = []
    for test in TESTS:
        files = sorted((tree / "tests").rglob(f"test_{test}.py"))
        if len(files) != 1:
            raise SystemExit(f"expected one file test_{test}.py in {tree}/tests, got {files}")
        found.append(str(files[0].relative_to(tree)))
    return found


def copy_committed(into: Path) -> None:
    """What the tests need of the repository: not the package, which comes from the wheel."""
    archive = into / "committed.tar"
    run("git", "-C", str(ROOT), "archive", "--format=tar", "-o", str(archive), "HEAD", *COPIED)
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    archive.unlink()


def inside(where: Path, script: str, log: Path) -> str:
    clean = ["env", "-i", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root", "LANG=C.UTF-8"]
    return run("chroot", str(where), *clean, "sh", "-euc", script, log=log)


def try_wheel(name: str, wheel: Path) -> None:
    root = ROOTS[name]
    where = make(name, root)
    work = where / "opt" / "try"
    shutil.rmtree(work, ignore_errors=True)
    download(root, wheel, work / "wheels")
    copy_committed(work)
    extras = " ".join(f"'{what}'" for what in NEEDED_BY_TESTS)
    with mounted(where):
        inside(
            where,
            f"cd /opt/try && {root.interpreter} -m venv v && "
            f"v/bin/pip install -q --no-index --find-links wheels 'enclavia[testing]' {extras}",
            BUILD / f"{name}-install.log",
        )
        demo = "cd /opt/try && v/bin/python docs/examples/demo.py"
        print(inside(where, demo, BUILD / f"{name}-demo.log"))
        told = inside(
            where,
            f"cd /opt/try && {PYTEST} {' '.join(chosen(work))}",
            BUILD / f"{name}-tests.log",
        )
    print(f"{name}: {told.strip().splitlines()[-1]}", flush=True)


def wheel_for(root: Root, folder: Path) -> Path:
    kind = "musllinux" if root.is_musl else "manylinux"
    found = sorted(folder.glob(f"enclavia-*{kind}*_{root.machine}.whl"))
    if not found:
        raise SystemExit(f"expected a {kind} wheel for {root.machine} in {folder}, got none")
    return found[-1].resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ROOTS)}")
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("expected to be run by root, because a root is made and entered")
    for name in args.names or ROOTS:
        try_wheel(name, wheel_for(ROOTS[name], args.wheels))


if __name__ == "__main__":
    main()
