"""Builds the wheel for Pyodide: ``python packaging/browser.py [--out DIR]``.

Everything lies below ``build/browser``: a Debian root with Emscripten in the version that
browser.toml names, Pyodide from npm, and from the sources that the other wheels carry too
(sources.toml) static libcrypto, libsodium and libcbor. From the source distribution the extension
is compiled with ``ENCLAVIA_WEB`` (setup.py) as a side module, under the limited API, and packed
with the package.

Only root can run this (the root is entered by chroot), and only on Debian. Nothing of the root gets
into the wheel but what its compiler makes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import libraries
import sbom
import sources
import wheels

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "browser"
DEBIAN = BUILD / "root"
WORK = "work"  # below the root; what is built there is copied in and out
MOST = 800_000
"""Bytes that the extension may have, compressed: whoever opens the page waits for them."""

PINS: dict[str, Any] = tomllib.loads((HERE / "browser.toml").read_text())
LIBRARIES = ("openssl", "libsodium", "libcbor")

# Beyond what wheels leave out: the browser has the sockets, TLS and files.
OPENSSL_WITHOUT = [
    *(name for name in libraries.OPENSSL_WITHOUT if name != "shared"),
    *"shared asm threads sock dso afalgeng secure-memory async posix-io dh ml-kem".split(),
]
OPTIONS = "-O3 -fPIC -g0 -fvisibility=hidden"
# Narrowing is looked for where sizes have 32 bits.
WARNINGS = "-Wall -Wextra -Wshadow -Wconversion -Wshorten-64-to-32 -Werror"


def run(*command: str, log: Path | None = None, **options: Any) -> str:  # noqa: ANN401
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        text = done.stdout[-4000:] + done.stderr[-4000:]
        raise SystemExit(f"{' '.join(command)} failed:\n{text}")
    return done.stdout


# ---- the toolchain


def inside(script: str, log: Path | None = None) -> str:
    """Runs a script of the shell in the root, in its work folder."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C"}
    environment |= {"DEBIAN_FRONTEND": "noninteractive", "SOURCE_DATE_EPOCH": "0", "TZ": "UTC"}
    script = f"set -eu; cd /{WORK}; {script}"
    return run("chroot", str(DEBIAN), "sh", "-c", script, env=environment, log=log)


def has_moved_on(wanted: str) -> str:
    return (
        f"expected Emscripten {wanted} in Debian's {PINS['toolchain']['suite']}, got another one; "
        "see which release of Pyodide is made with that before packaging/browser.toml is changed:\n"
    )


def make_root() -> None:
    wanted = PINS["toolchain"]["emscripten"]
    made = DEBIAN / "made"
    if made.is_file() and made.read_text() == wanted:
        return
    shutil.rmtree(DEBIAN, ignore_errors=True)
    DEBIAN.mkdir(parents=True)
    run(
        "debootstrap", "--variant=minbase", "--include=ca-certificates",
        PINS["toolchain"]["suite"], str(DEBIAN), sources.archive_of_this_machine(),
        log=BUILD / "debootstrap.log",
    )  # fmt: skip
    (DEBIAN / WORK).mkdir(exist_ok=True)
    # The archive's index of the development release may be older than apt likes.
    inside("apt-get -qq -o Acquire::Check-Valid-Until=false update", BUILD / "update.log")
    offered = inside("apt-cache madison emscripten")
    if wanted not in offered.split():
        raise SystemExit(has_moved_on(wanted) + offered)
    names = [f"emscripten={wanted}", *PINS["toolchain"]["others"]]
    inside(f"apt-get -qq install -y --no-install-recommends {' '.join(names)}", BUILD / "apt.log")
    made.write_text(wanted)


# ---- Pyodide


def pyodide(version: str) -> Path:
    """The npm package, unpacked."""
    folder = BUILD / "pyodide" / version
    if not (folder / "package" / "pyodide.mjs").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        archive = run("npm", "pack", "--silent", f"pyodide@{version}", cwd=folder).split()[-1]
        run("tar", "-xzf", archive, cwd=folder)
    return folder / "package"


FACTS = """
const { loadPyodide } = await import(process.argv[2] + "/pyodide.mjs");
const python = await loadPyodide();
console.log(python.runPython(`
import json, sysconfig
names = sysconfig.get_config_vars()
json.dumps({name: value for name, value in names.items() if isinstance(value, (int, str))})
`));
process.exit(0);
"""


def facts(package: Path) -> dict[str, Any]:
    """What its Python says of how it was built."""
    kept = package / "facts.json"
    if not kept.exists():
        program = package / "facts.mjs"
        program.write_text(FACTS)
        kept.write_text(run("node", str(program), str(package)).splitlines()[-1])
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def check_platform(pin: dict[str, str]) -> None:
    """The tag is the one that this release gives itself."""
    says = facts(pyodide(pin["npm"]))["PYEMSCRIPTEN_PLATFORM_VERSION"]
    if pin["platform"] != f"pyemscripten_{says}_wasm32":
        raise SystemExit(f"pyodide {pin['npm']}: expected {pin['platform']}, got version {says}")


def is_for_headers(name: str, value: object) -> bool:
    starts = ("HAVE_", "SIZEOF_", "ALIGNOF_", "WITH_", "Py_", "STDC_")
    return isinstance(value, int) and value != 0 and name.startswith(starts)


def python_headers(into: Path) -> None:
    """This interpreter's headers, which are enough under the limited API, with the pyconfig.h of a
    machine whose pointers have 32 bits, made of what Pyodide's Python says."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), into)
    known = facts(pyodide(PINS["pyodide"][0]["npm"]))
    lines = [f"#define {k} {v}\n" for k, v in sorted(known.items()) if is_for_headers(k, v)]
    assert "#define SIZEOF_SIZE_T 4\n" in lines
    (into / "pyconfig.h").write_text(
        f"#ifndef Py_PYCONFIG_H\n#define Py_PYCONFIG_H\n{''.join(lines)}#endif\n"
    )


# ---- libraries

CONFIGURE = {
    "openssl": (
        "../openssl/Configure linux-generic32 --prefix=/usr --openssldir=/etc/ssl "
        + " ".join(f"no-{name}" for name in OPENSSL_WITHOUT)
        + " && make -j{jobs} build_generated && make -j{jobs} libcrypto.a"
        " && mkdir -p ../prefix/lib ../prefix/include && cp libcrypto.a ../prefix/lib"
        " && cp -r ../openssl/include/openssl include/openssl ../prefix/include"
    ),
    "libsodium": (
        "emconfigure ../libsodium/configure --host=wasm32-unknown-none --prefix=/"
        + WORK
        + "/prefix "
        "--disable-shared --enable-static --with-pic --disable-ssp --disable-asm --without-pthreads"
        " && make -j{jobs} -C src && make -C src install"
    ),
    # Not by its own build, which asks whether the linker can optimise, and has all of Emscripten's
    # libraries compiled once more for the answer. It has two headers for builds without it.
    "libcbor": (
        "mkdir -p ../prefix/lib ../prefix/include && cp -r ../libcbor/src/. ../prefix/include"
        " && cp -r ../libcbor/examples/bazel/third_party/libcbor/cbor/. ../prefix/include/cbor"
        " && for file in $(cd ../libcbor/src && echo *.c */*.c */*/*.c); do"
        " emcc $CFLAGS -DNDEBUG -I../prefix/include -c ../libcbor/src/$file"
        " -o $(echo $file | tr / _).o; done && emar rcs ../prefix/lib/libcbor.a *.o"
    ),
}


def build_library(name: str, source: Path) -> None:
    work = DEBIAN / WORK
    for folder in (work / name, work / f"{name}-build"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, work / name, symlinks=True)
    (work / f"{name}-build").mkdir()
    jobs = os.environ.get("ENCLAVIA_JOBS") or str(os.cpu_count() or 1)
    steps = CONFIGURE[name].format(jobs=jobs)
    inside(
        f"export CC=emcc AR=emar RANLIB=emranlib CFLAGS='{OPTIONS}'; cd {name}-build; {steps}",
        BUILD / f"{name}.log",
    )


def build_libraries(names: Iterable[str] = LIBRARIES) -> None:
    """Each is kept while its source, the compiler and how it is built are the same."""
    made_of = PINS["toolchain"]["emscripten"] + OPTIONS
    into = BUILD / "sources"
    into.mkdir(parents=True, exist_ok=True)
    for source in sources.pinned():
        if source.name not in names:
            continue
        stamp = DEBIAN / WORK / f"{source.name}.made-of"
        text = hashlib.sha256(f"{made_of}{source}{CONFIGURE[source.name]}".encode()).hexdigest()
        if stamp.is_file() and stamp.read_text() == text:
            continue
        print(f"wasm32: building {source.name}", flush=True)
        archive = sources.fetch(source, into / "archives")
        build_library(source.name, sources.unpack(source, archive, into))
        stamp.write_text(text)


# ---- the extension, and the wheel


def tags() -> str:
    return ".".join(pin["platform"] for pin in PINS["pyodide"])


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def compilers(tree: Path) -> dict[str, str]:
    """The environment for setup.py on this machine. What it calls runs in the root, in the same
    folder: all names of files that it is given are relative."""
    tools = BUILD / "tools"
    tools.mkdir(exist_ok=True)
    where = f"/{tree.relative_to(DEBIAN)}"
    enter = f"exec chroot '{DEBIAN}' sh -c 'cd {where} && exec \"$0\" \"$@\"'"
    cc = script(tools / "encl-emcc", f'{enter} emcc "$@"')
    link = script(
        tools / "encl-emlink",
        f'{enter} emcc -sSIDE_MODULE=2 -sEXPORTED_FUNCTIONS=_PyInit__core -O3 -g0 "$@"',
    )
    found = "-I../prefix/include"
    libs = "-L../prefix/lib -lsodium -lcbor -lcrypto"
    pkg_config = script(
        tools / "encl-pkg-config", f'case "$*" in *--cflags*) echo {found};; *) echo {libs};; esac'
    )
    return os.environ | {
        "CC": cc,
        "LDSHARED": link,
        "PKG_CONFIG": pkg_config,
        "CFLAGS": "",
        "OPT": "-DNDEBUG",
        "ENCLAVIA_WEB": "1",
        "ENCLAVIA_CFLAGS": f"{OPTIONS} {WARNINGS}",
        "ENCLAVIA_INCLUDE": "../python",
        "ENCLAVIA_PLATFORM": tags(),
        "_PYTHON_HOST_PLATFORM": "emscripten-wasm32",
        "SOURCE_DATE_EPOCH": wheels.commit_time(),
    }


def compressed(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), 9, mtime=0))


def build_wheel(out: Path) -> Path:
    """From the source distribution, so that one that lacks a file is noticed."""
    epoch = wheels.commit_time()
    sdist = wheels.build_sdist(wheels.export_tree(BUILD / "sdist"), BUILD / "made", epoch)
    shutil.rmtree(DEBIAN / WORK / "tree", ignore_errors=True)
    tree = wheels.unpack_sdist(sdist, DEBIAN / WORK / "unpacked").rename(DEBIAN / WORK / "tree")
    python_headers(DEBIAN / WORK / "python")
    raw = BUILD / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(raw), ".",
        cwd=tree, env=compilers(tree), log=BUILD / "wheel.log",
    )  # fmt: skip
    return finish(next(raw.glob("*.whl")), out, int(epoch))


def finish(raw: Path, out: Path, epoch: int) -> Path:
    """Licences and the list of what is inside are added, and the tags of the platforms set."""
    env = os.environ | {"SOURCE_DATE_EPOCH": str(epoch)}
    folder = BUILD / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "wheel", "unpack", "-d", str(folder), str(raw))
    tree = next(folder.iterdir())
    carried = [source for source in sources.pinned() if source.name in LIBRARIES]
    info = next(tree.glob("*.dist-info"))
    wheels.add_licences(info, {s.name: BUILD / "sources" / s.folder for s in carried}, carried)
    (info / "sboms").mkdir()
    (info / "sboms" / "enclavia.cdx.json").write_text(
        sbom.document(carried, wheels.run_version(), tags(), epoch)
    )
    check_extension(next((tree / "enclavia").glob("_core*.so")))
    wheels.set_modes(tree)
    run(sys.executable, "-m", "wheel", "pack", "-d", str(folder), str(tree), env=env)
    name = run(
        sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tags(),
        str(next(folder.glob("*.whl"))), env=env,
    ).split()[-1]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(folder / name, out / name))


def check_extension(path: Path) -> None:
    size = compressed(path)
    print(f"{path.name}: {path.stat().st_size:,} bytes, {size:,} compressed", flush=True)
    if size > MOST:
        raise SystemExit(f"{path.name}: expected at most {MOST:,} bytes compressed, got {size:,}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if os.geteuid() != 0:
        raise SystemExit("expected to be run by root, since the toolchain is entered by chroot")
    BUILD.mkdir(parents=True, exist_ok=True)
    make_root()
    for pin in PINS["pyodide"]:
        check_platform(pin)
    build_libraries()
    wheel = build_wheel(args.out.resolve())
    print(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.stat().st_size:>9,}  {wheel}")


if __name__ == "__main__":
    main()
