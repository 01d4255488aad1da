"""What a finished extension and a finished package must be like; anything else is refused."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

from elftools.elf.dynamic import DynamicSection, DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection
from libraries import Target
from readme_renderer import markdown

ROOT = Path(__file__).resolve().parents[1]
GLIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
MUSL = {"libc.so"}


def needed(elf: ELFFile) -> set[str]:
    section = elf.get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    return {tag.needed for tag in section.iter_tags("DT_NEEDED")}


def exported(elf: ELFFile) -> set[str]:
    table = elf.get_section_by_name(".dynsym")
    assert isinstance(table, SymbolTableSection)
    return {
        symbol.name
        for symbol in table.iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
    }


def newest_glibc(elf: ELFFile) -> tuple[int, ...]:
    """The newest symbol version of glibc that is asked for; (0,) where there is none."""
    newest: tuple[int, ...] = (0,)
    section = elf.get_section_by_name(".gnu.version_r")
    if isinstance(section, GNUVerNeedSection):
        for _, versions in section.iter_versions():
            for version in versions:
                found = re.fullmatch(r"GLIBC_([\d.]+)", version.name)
                if found:
                    newest = max(newest, tuple(map(int, found[1].split("."))))
    return newest


def binds_now(elf: ELFFile) -> bool:
    segment = next(s for s in elf.iter_segments() if isinstance(s, DynamicSegment))
    flags = {tag.entry.d_tag: tag.entry.d_val for tag in segment.iter_tags()}
    return bool(
        "DT_BIND_NOW" in flags or flags.get("DT_FLAGS", 0) & 8 or flags.get("DT_FLAGS_1", 0) & 1
    )


def stack_is_executable(elf: ELFFile) -> bool:
    stacks = [s for s in elf.iter_segments() if s["p_type"] == "PT_GNU_STACK"]
    return not stacks or any(s["p_flags"] & 1 for s in stacks)


def binary(path: Path, target: Target) -> None:
    """Raises SystemExit that lists all that is wrong with the extension."""
    wrong = []
    with path.open("rb") as file:
        elf = ELFFile(file)
        machine = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}.get(elf["e_machine"], "?")
        if machine != target.machine:
            wrong.append(f"expected code for {target.machine}, got {machine}")
        allowed = MUSL if target.is_musl else GLIBC | LOADERS
        if not needed(elf) <= allowed:
            wrong.append(f"expected no libraries but {allowed}, got {needed(elf) - allowed}")
        if exported(elf) != {"PyInit__core"}:
            wrong.append(f"expected only PyInit__core exported, got {sorted(exported(elf))[:9]}")
        oldest = re.search(r"_(\d+)_(\d+)_", target.platform_tag)
        assert oldest is not None
        limit = (int(oldest[1]), int(oldest[2]))
        if not target.is_musl and newest_glibc(elf) > limit:
            wrong.append(f"expected symbols of glibc {limit} at most, got {newest_glibc(elf)}")
        if not any(s["p_type"] == "PT_GNU_RELRO" for s in elf.iter_segments()):
            wrong.append("expected read-only relocations (RELRO), got none")
        if not binds_now(elf):
            wrong.append("expected all symbols bound at load time (BIND_NOW)")
        if stack_is_executable(elf):
            wrong.append("expected a stack that cannot be executed")
        if str(ROOT).encode() in path.read_bytes():
            wrong.append("expected no folder of this machine in the binary, got the checkout's")
    if wrong:
        raise SystemExit(f"{path.name} for {target.platform_tag}:\n  " + "\n  ".join(wrong))


def objects(folder: Path) -> None:
    """The stack protector is in use. That is seen in what was compiled, because zig links functions
    of its own for it, after which the finished library no longer tells."""
    for path in folder.rglob("*.o"):
        with path.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            assert isinstance(table, SymbolTableSection)
            if any(symbol.name == "__stack_chk_fail" for symbol in table.iter_symbols()):
                return
    raise SystemExit(
        f"expected the stack protector in what was compiled in {folder}, got no use of it"
    )


def assembler(work: Path, target: Target) -> None:
    """OpenSSL's code for new processors is in. Its configuration leaves it out, and says nothing,
    where it does not recognise the assembler."""
    if target.machine != "x86_64":
        return
    for path in work.rglob("*chacha-x86_64.o"):
        with path.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            assert isinstance(table, SymbolTableSection)
            if any(symbol.name == "ChaCha20_16x" for symbol in table.iter_symbols()):
                return
    raise SystemExit(f"expected ChaCha20 with AVX-512 in what was compiled in {work}, got none")


def metadata(made: Path) -> Message:
    if made.suffix == ".whl":
        with zipfile.ZipFile(made) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
            return message_from_bytes(wheel.read(name))
    with tarfile.open(made) as sdist:
        found = sdist.extractfile(f"{made.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert found is not None
        return message_from_bytes(found.read())


def description(made: Path) -> None:
    """The page of the package has no link to a file that is only in the repository. Rendered as a
    package index does it."""
    body = metadata(made).get_payload(decode=True)
    assert isinstance(body, bytes)
    html = markdown.render(body.decode())
    if html is None:
        raise SystemExit(f"{made.name}: expected a description that can be rendered as Markdown")
    links = re.findall(r'(?:href|src)="([^"]*)"', html)
    wrong = [link for link in links if not re.match(r"https?://|mailto:|#", link)]
    if wrong:
        raise SystemExit(f"{made.name}: expected absolute links in the description, got {wrong}")


def packages(made: list[Path]) -> None:
    """The checks that published tools make of whole packages."""
    names = [str(path) for path in made]
    wheels = [name for name in names if name.endswith(".whl")]
    tool("twine", "check", "--strict", *names)
    for path in made:
        description(path)
    if wheels:
        tool("check_wheel_contents", *wheels)
        for wheel in wheels:
            tool("abi3audit", "--strict", wheel)
            if "manylinux" in wheel:
                agrees(wheel)


def agrees(wheel: str) -> None:
    """auditwheel gives the same tag. On a machine with glibc it reads no wheels for musl."""
    tag = wheel.rpartition("-")[2].removesuffix(".whl")
    said = tool("auditwheel", "show", wheel)
    if f'"{tag}"' not in " ".join(said.split()):
        raise SystemExit(f"expected auditwheel to call this {tag}, got:\n{said}")


def tool(module: str, *arguments: str) -> str:
    """In the repository's folder, whose pyproject.toml has the settings of some tools."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{module} {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout
