"""docs/architecture.md's picture, held up by the include and import graphs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What each layer may know of: itself, and these.
C_LAYERS = {
    "base": set(),
    "cbor": {"base"},
    "noise": {"base"},
    "wire": {"base", "cbor"},
    "attest": {"base", "cbor"},
    "ws": {"base"},
    "session": {"base", "noise", "wire", "attest"},
    "net": {"base", "ws"},
    "channel": {"base", "attest", "session", "net"},
    "enclave": {"base", "attest", "session", "net"},
    "python": {"base", "attest", "session", "channel", "enclave"},
}
# Beside the picture: the binding also reports which libraries and loops a build has.
C_REPORTS = {"cbor/library.h", "net/library.h", "wire/wire.h"}

# Who may touch the outside: sockets, threads that wait, clocks, the libraries of one layer.
C_OUTSIDE = {
    "Python.h": {"python"},
    "libwebsockets.h": {"net"},
    "sys/socket.h": {"net"},
    "netdb.h": {"net"},
    "netinet/in.h": {"net"},
    "arpa/inet.h": {"net"},
    "openssl/ssl.h": {"net"},
    "sodium.h": {"base", "noise", "attest"},
    "cbor.h": {"cbor"},
    "cbor/data.h": {"cbor"},
}

PURE = ("base", "cbor", "noise", "wire", "attest", "ws", "session")
NOT_IN_PURE_CODE = re.compile(
    r"\b(socket|recv|send|poll|select|epoll_wait|clock_gettime|gettimeofday|time|"
    r"pthread_create|pthread_cond_wait|sleep|usleep|nanosleep)\s*\("
)

# Python modules that neither do I/O nor know who does.
SANS_IO = {"_arguments", "_errors", "_http1", "_pcrs", "_pins", "_pool", "_retry", "_text", "_url"}


def c_files() -> list[Path]:
    return sorted((ROOT / "csrc").glob("*/*.[ch]"))


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^">]+)[">]', path.read_text(), re.MULTILINE)


def without_comments(text: str) -> str:
    return re.sub(r'/\*.*?\*/|"(\\.|[^"\\])*"', " ", text, flags=re.DOTALL)


def test_every_layer_is_in_the_picture() -> None:
    assert {path.parent.name for path in c_files()} == set(C_LAYERS)


@pytest.mark.parametrize("path", c_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_includes_go_down_only(path: Path) -> None:
    layer = path.parent.name
    for name in includes(path):
        folder = name.split("/")[0]
        if (layer, path.name) == ("python", "library.c") and name in C_REPORTS:
            continue
        if folder in C_LAYERS and (ROOT / "csrc" / name).exists():
            assert folder == layer or folder in C_LAYERS[layer], f"{path} includes {name}"
        if name in C_OUTSIDE:
            assert layer in C_OUTSIDE[name], f"{path} includes {name}"


@pytest.mark.parametrize("path", c_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_pure_layers_neither_wait_nor_look_at_the_clock(path: Path) -> None:
    if path.parent.name in PURE:
        found = NOT_IN_PURE_CODE.findall(without_comments(path.read_text()))
        assert not found, f"{path} calls {found}"


@pytest.mark.parametrize("path", c_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_python_objects_stay_in_the_binding(path: Path) -> None:
    if path.parent.name != "python":
        assert "PyObject" not in path.read_text()


def module_imports(path: Path) -> set[str]:
    """Names of the package's own modules that are imported, at the top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            if node.module:
                found.add(node.module.split(".")[0])
            else:
                found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("enclavia"):
            found.add("enclavia")
        elif isinstance(node, ast.Import):
            found.update("enclavia" for alias in node.names if alias.name.startswith("enclavia"))
    return found


def package() -> dict[str, set[str]]:
    return {path.stem: module_imports(path) for path in (ROOT / "enclavia").glob("*.py")}


def test_sans_io_modules_know_only_each_other() -> None:
    for name in SANS_IO:
        outside = package()[name] - SANS_IO
        assert not outside, f"enclavia.{name} imports {outside}"


def test_python_modules_import_without_a_circle() -> None:
    graph = {name: imports for name, imports in package().items() if name != "__init__"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done and name in graph:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_package_does_not_import_its_test_tools() -> None:
    for name, imports in package().items():
        assert "testing" not in imports, f"enclavia.{name} imports enclavia.testing"
