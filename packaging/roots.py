"""Tries the wheels on systems that have none of the libraries: ``python packaging/roots.py
[NAME…]``.

Each root is a Debian release of its own folder (debootstrap; another architecture runs under
qemu-user), so only root can run this, and only on Debian. What pip installs there is downloaded
by this machine's pip for the root's platform, and installed without a network. Then the demo and
a part of the tests run in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sources import archive_of_this_machine

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "wheels" / "roots"

# Libraries that a wheel carries and that no root may have. (Debian's Python brings OpenSSL's.)
CARRIED = ("libsodium", "libwebsockets", "libcbor")
NEEDED_BY_TESTS = (
    "pytest hypothesis starlette httpx2[ws]>=2.12 websockets trio cbor2 uvloop".split()
)
TESTS = """
channel/test_channel.py channel/test_tls.py channel/test_trust_store.py client/test_client.py
house/test_build_info.py identity/test_attestation.py testing/test_enclave.py
""".split()


class Root(NamedTuple):
    suite: str
    debian: str
    """What Debian calls the architecture."""
    machine: str
    """What a wheel's tag calls it."""
    python: str
    glibc: tuple[int, int]


ROOTS = {
    "bookworm-amd64": Root("bookworm", "amd64", "x86_64", "3.11", (2, 36)),
    "trixie-amd64": Root("trixie", "amd64", "x86_64", "3.13", (2, 41)),
    "bookworm-arm64": Root("bookworm", "arm64", "aarch64", "3.11", (2, 36)),
}


def run(*command: str, log: Path | None = None) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        text = done.stdout[-4000:] + done.stderr[-4000:]
        raise SystemExit(f"{' '.join(command)} failed:\n{text}")
    return done.stdout


def make(name: str, root: Root) -> Path:
    where = BUILD / name
    if not (where / "usr" / "bin" / "python3").exists():
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        run(
            "debootstrap", "--variant=minbase", f"--arch={root.debian}",
            "--include=python3-venv,ca-certificates", root.suite, str(where),
            archive_of_this_machine(), log=BUILD / f"{name}.log",
        )  # fmt: skip
    (where / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # debootstrap writes none
    found = [path for stem in CARRIED for path in where.glob(f"usr/lib/*/{stem}*.so*")]
    if found:
        raise SystemExit(f"{name}: expected none of the libraries, got {found}")
    return where


def platforms(root: Root) -> list[str]:
    """The tags that this root's pip would take, newest first."""
    newest = root.glibc[1]
    tags = [f"manylinux_2_{minor}_{root.machine}" for minor in range(newest, 4, -1)]
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


def inside(where: Path, script: str, log: Path) -> str:
    clean = ["env", "-i", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root", "LANG=C.UTF-8"]
    return run("chroot", str(where), *clean, "sh", "-euc", script, log=log)


def try_wheel(name: str, wheel: Path) -> None:
    root = ROOTS[name]
    where = make(name, root)
    work = where / "opt" / "try"
    shutil.rmtree(work, ignore_errors=True)
    download(root, wheel, work / "wheels")
    for folder in "support", "python":
        shutil.copytree(ROOT / "tests" / folder, work / "tests" / folder)
    shutil.copy(ROOT / "docs" / "examples" / "demo.py", work)
    shutil.copy(ROOT / "pyproject.toml", work)
    extras = " ".join(f"'{what}'" for what in NEEDED_BY_TESTS)
    with mounted(where):
        inside(
            where,
            "cd /opt/try && python3 -m venv v && "
            f"v/bin/pip install -q --no-index --find-links wheels 'enclavia[testing]' {extras}",
            BUILD / f"{name}-install.log",
        )
        print(inside(where, "cd /opt/try && v/bin/python demo.py", BUILD / f"{name}-demo.log"))
        tests = " ".join(f"tests/python/{test}" for test in TESTS)
        told = inside(
            where,
            f"cd /opt/try && v/bin/python -m pytest -q -p no:cacheprovider {tests}",
            BUILD / f"{name}-tests.log",
        )
    print(f"{name}: {told.strip().splitlines()[-1]}", flush=True)


def wheel_for(root: Root, folder: Path) -> Path:
    found = sorted(folder.glob(f"enclavia-*manylinux*_{root.machine}.whl"))
    if not found:
        raise SystemExit(f"expected a manylinux wheel for {root.machine} in {folder}, got none")
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
