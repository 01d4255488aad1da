"""docs/architecture.md's picture, held up by the include and import graphs."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

import enclavia

PINNED = enclavia.Pcrs(pcr0=b"1" * 48, pcr1=b"2" * 48, pcr2=b"3" * 48)

# What each layer may know of: itself, and these.
C_LAYERS = {
    "base": set(),
    "platform": set(),
    "sync": {"platform"},
    "cbor": {"base"},
    "noise": {"base"},
    "wire": {"base", "cbor"},
    "attest": {"base", "cbor"},
    "ws": {"base"},
    "session": {"base", "noise", "wire", "attest"},
    "net": {"base", "platform", "sync", "ws"},
    "web": {"base", "platform", "sync"},
    "channel": {"base", "platform", "sync", "attest", "session", "net"},
    "enclave": {"base", "platform", "sync", "attest", "session", "net"},
    "python": {"base", "sync", "attest", "session", "channel", "enclave", "web"},
}
# web takes the place of net where there are no sockets: it has the same declarations.
C_TAKES_THE_PLACE = {"web": "net/net.h"}
# Beside the picture: the binding also reports which libraries and loops a build has.
C_REPORTS = {"cbor/library.h", "net/library.h", "wire/wire.h"}

# Who may touch the outside: sockets, threads that wait, clocks, the libraries of one layer.
C_OUTSIDE = {
    "Python.h": {"python"},
    "libwebsockets.h": {"net"},
    "sys/socket.h": {"net", "platform"},
    "netdb.h": {"net"},
    "netinet/in.h": {"net", "platform"},
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

# Calls, constants and headers that one operating system has and another has not.
OF_ONE_SYSTEM = re.compile(
    r"\b(eventfd|EFD_\w+|timerfd_\w+|TFD_\w+|epoll_\w+|signalfd|inotify_\w+|memfd_create|accept4|"
    r"pipe2|dup3|prctl|gettid|syscall|sendmmsg|recvmmsg|SOCK_CLOEXEC|SOCK_NONBLOCK|MSG_NOSIGNAL|"
    r"MSG_CMSG_CLOEXEC|CLOCK_(?!REALTIME\b)\w+|TCP_INFO|tcp_info|TCP_USER_TIMEOUT|AF_UNSPEC|"
    r"pthread_condattr_setclock|pthread_cond_timedwait\w*|pthread_setname_np|st_[amc]tim(espec)?|"
    r"SO_NOSIGPIPE|TCP_CONNECTION_INFO|kqueue|kevent\w*|mach_\w+|clock_gettime_nsec_np|arc4random\w*)\b"
    r"|/proc/|/dev/fd|<(linux|mach|sys/(eventfd|timerfd|epoll|event|prctl|syscall))[/.]"
)

# The packages of enclavia/ in the order in which they are built upon each other. Each knows itself,
# GROUND, and these.
GROUND = {"_core", "_errors", "_text", "_arguments", "_interpreter", "_public", "_records"}
PYTHON_LAYERS = {
    "_identity": set(),
    "_io": set(),
    "_http1": set(),
    "_pool": set(),
    "_trust": {"_identity", "_io"},
    "_files": {"_io"},
    "_channel": {"_identity", "_io", "_trust"},
    "_exchange": {"_identity", "_io", "_trust", "_channel", "_http1", "_pool"},
    "_client": {
        "_identity",
        "_io",
        "_trust",
        "_files",
        "_channel",
        "_http1",
        "_pool",
        "_exchange",
    },
    "_forward": {"_identity", "_io", "_trust", "_channel", "_pool", "_exchange", "_client"},
    "_fleet": {"_identity", "_io", "_channel", "_client", "_forward"},
}
# What is public, and the modules that are no part of a package.
PYTHON_FACES = {
    "__init__",
    "__main__",
    "dask",
    "fsspec",
    "httpx",
    "opentelemetry",
    "ray",
    "requests",
    "spark",
}
# A user of what is public, which nothing but __main__ imports; beside that it downloads by the same
# code as the clients do.
PROGRAM = "_cli"
OF_THE_PROGRAM = {PROGRAM, "_files"}
PYTHON_GROUND = {
    "_text": set(),
    "_arguments": set(),
    "_interpreter": set(),
    "_public": set(),
    "_records": set(),
    "_errors": {"_public", "_text"},
    "_libraries": set(),
    "_build_info": {"_core"},
    "_unfinished": set(),
}

# Modules and packages that neither do I/O nor read a clock, nor know a module that does.
SANS_IO = (
    "_arguments",
    "_errors",
    "_public",
    "_text",
    "_http1",
    "_pool",
    "_identity.pcrs",
    "_identity.pins",
    "_channel.url",
    "_exchange.retry",
    "_files.source",
    "_files.validators",
)
NOT_IN_SANS_IO = {"anyio", "asyncio", "select", "selectors", "socket", "ssl", "subprocess", "time"}


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
        if C_TAKES_THE_PLACE.get(layer) == name:
            continue
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


@pytest.mark.parametrize("path", c_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_one_system_alone_has_is_named_in_platform(path: Path) -> None:
    if path.parent.name != "platform":
        code = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL)
        found = [match.group() for match in OF_ONE_SYSTEM.finditer(code)]
        assert not found, f"{path} names {found}: platform/platform.h is the place for it"


def test_every_system_defines_the_whole_platform() -> None:
    folder = ROOT / "csrc" / "platform"
    declared = set(re.findall(r"^\w[\w *]*?(\w+)\(", (folder / "platform.h").read_text(), re.M))
    for name in ("linux.c", "macos.c"):
        assert defined_functions(folder / name) == declared, name


def defined_functions(path: Path) -> set[str]:
    """Functions that other files can call; the sources are laid out by clang-format."""
    code = without_comments(path.read_text())
    found = re.findall(r"^(?!static\b)\w[\w *]*?\b(\w+)\([^;{}]*\)\s*\{$", code, re.MULTILINE)
    return set(found)


def python_files() -> list[Path]:
    folders = ("*.py", *(f"{layer}/*.py" for layer in PYTHON_LAYERS))
    return sorted(path for pattern in folders for path in (ROOT / "enclavia").glob(pattern))


def module_name(path: Path) -> str:
    """``_pool.ticket`` for enclavia/_pool/ticket.py."""
    parts = path.relative_to(ROOT / "enclavia").with_suffix("").parts
    return ".".join(parts)


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """The package's own modules that are imported, at the top or inside functions, and the top
    names of all others."""
    own: set[str] = set()
    others: set[str] = set()
    base = path.relative_to(ROOT / "enclavia").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1]
            named = [node.module] if node.module else [alias.name for alias in node.names]
            own.update(".".join((*start, *name.split("."))) for name in named)
    return own, others


def layer_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_python_package_is_in_the_picture() -> None:
    folders = {path.parent.name for path in (ROOT / "enclavia").glob("*/__init__.py")}
    assert folders == {*PYTHON_LAYERS, "testing", PROGRAM}
    modules = {path.stem for path in (ROOT / "enclavia").glob("*.py")}
    assert modules == {*PYTHON_FACES, *PYTHON_GROUND}


@pytest.mark.parametrize("path", python_files(), ids=module_name)
def test_python_imports_go_down_only(path: Path) -> None:
    own, others = imports_of(path)
    layer = layer_of(module_name(path))
    assert "enclavia" not in others, f"{path} imports the package by its public name"
    known = {layer_of(module) for module in own} - {layer}
    assert "testing" not in known, f"{path} imports enclavia.testing"
    assert PROGRAM not in known or layer == "__main__", f"{path} imports the command line"
    if layer in PYTHON_LAYERS:
        assert known <= GROUND | PYTHON_LAYERS[layer], f"{path} imports {known}"
    elif layer in PYTHON_GROUND:
        assert known <= PYTHON_GROUND[layer], f"{path} imports {known}"


def head_of(path: Path) -> str:
    """What stands before the first statement, in one line: the docstring, and where help()
    shows that to users, the comment behind it."""
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    comment = re.search(r'"""\n\n((?:#.*\n)*)', text)
    return " ".join(f"{docstring} {comment[1] if comment else ''}".replace("#", " ").split())


def listed(text: str, key: str) -> set[str]:
    """Of ``Calls: _errors, _io. Locks: …``, where ``nothing …`` and ``no …`` are no names."""
    found = re.search(rf"\b{key}: ([^.]+)\.", text)
    assert found, f"{key}: …"
    return set() if found[1].startswith("no") else set(found[1].split(", "))


def all_python_files() -> list[Path]:
    return sorted((ROOT / "enclavia").glob("**/*.py"))


@pytest.mark.parametrize("path", all_python_files(), ids=module_name)
def test_every_module_says_what_it_decides_calls_and_locks(path: Path) -> None:
    head = head_of(path)
    assert re.match(r".{20,}?[.:]( |$)", head), "begins with a sentence"
    assert re.search(r"\b[Dd]ecid|\bdecision", head), "says what it decides"
    layer = path.parent.name
    if path.name == "__init__.py" and layer in PYTHON_LAYERS:
        assert listed(head, "May call") == PYTHON_LAYERS[layer]
        return
    own, _ = imports_of(path)
    assert listed(head, "Calls") == {layer_of(module) for module in own} - {layer}
    locks = re.search(r"\bLocks: (\S.*)", head)
    assert locks, "says which lock it holds"
    made = set(re.findall(r"\b(\w+) = threading\.R?Lock\(", path.read_text()))
    assert set(re.findall(r"``(\w+)``", locks[1])) >= made
    assert made or "with self._lock" in path.read_text() or "``" not in locks[1]


@pytest.mark.parametrize(
    "path",
    [path for path in c_files() if path.suffix == ".c"],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_every_c_file_says_what_it_is_for(path: Path) -> None:
    comment = re.match(r"/\*(.+?)\*/", path.read_text(), re.DOTALL)
    assert comment, "begins with a comment"
    text = " ".join(comment[1].replace("\n *", " ").split())
    assert re.search(r"\w.{30,}\.( |$)", text), "has a sentence"
    if path.parent.name not in PURE:
        assert re.search(r"lock\b|enters\b|GIL\b|->io\b", text), "says which lock is held, or none"


def program_files() -> list[Path]:
    return sorted((ROOT / "enclavia" / PROGRAM).glob("*.py"))


def private_names(tree: ast.AST) -> set[str]:
    """What a module that is no part of the package takes of it, and is not public."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("enclavia._")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("enclavia"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if re.search(r"\._", name)}
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("enclavia._"):
            found.add(ast.unparse(node))
    return {name for name in found if not re.fullmatch(r"enclavia\.__\w+__", name)}


@pytest.mark.parametrize("path", program_files(), ids=lambda path: path.stem)
def test_the_command_line_knows_what_is_public(path: Path) -> None:
    own, _ = imports_of(path)
    assert {layer_of(module) for module in own} <= OF_THE_PROGRAM, f"{path} imports {own}"
    assert not private_names(ast.parse(path.read_text()))


def test_private_names_are_found() -> None:
    for code in (
        "import enclavia._errors",
        "from enclavia import _errors",
        "from enclavia._errors import ServerError",
        "import enclavia; enclavia._errors.ServerError",
    ):
        assert private_names(ast.parse(code)), code
    assert not private_names(ast.parse("import enclavia; enclavia.__version__, enclavia.Client"))


def test_sans_io_modules_know_only_each_other() -> None:
    def is_sans_io(module: str) -> bool:
        return module in SANS_IO or layer_of(module) in SANS_IO

    seen = 0
    for path in python_files():
        if not is_sans_io(module_name(path)):
            continue
        seen += 1
        own, others = imports_of(path)
        assert all(map(is_sans_io, own)), f"{path} imports {own}"
        assert not others & NOT_IN_SANS_IO, f"{path} imports {others & NOT_IN_SANS_IO}"
    assert seen > len(SANS_IO)


# One module imports anyio, which costs time. It and what is made from it are imported by a client
# that awaits, and not before.
ANYIO = {"_io.loops"}
AWAITED = {
    "_io.loops",
    "_io.switching",
    "_channel.async_channel",
    "_client.async_transport",
    "_files.loop_face",
    "_forward.server",
    "_forward.serving",
    "_forward.short_way",
}


def test_anyio_is_imported_late() -> None:
    imports = {module_name(path): imports_of(path) for path in python_files()}
    assert {name for name, (_, others) in imports.items() if "anyio" in others} == ANYIO
    for path in python_files():
        tree = ast.parse(path.read_text())
        at_once = {
            f"{'.' * node.level}{node.module}"
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.level
        }
        awaited = {name for name in at_once if name.lstrip(".").split(".")[-1] in _LAST_PARTS}
        assert not awaited or module_name(path) in {*AWAITED, "httpx"}, f"{path} imports {awaited}"


_LAST_PARTS = {name.rpartition(".")[2] for name in AWAITED}


# Of httpx2's clients and responses; each of them may be renamed by any release of it.
_INSIDE_HTTPX2 = re.compile(
    r"\bhttpx2\._\w+|\._(?:state|default_encoding|build_redirect_request|redirect_url|cookies"
    r"|timeout|transport|content|num_bytes_downloaded)\b"
)


def test_one_module_knows_what_is_inside_of_httpx2() -> None:
    names: dict[str, set[str]] = {}
    for path in python_files():
        if layer_of(module_name(path)) in ("_client", "httpx", "requests"):
            text = re.sub(r"(?m)^if TYPE_CHECKING:\n(?:    .*\n|\n)+", "", path.read_text())
            if found := set(_INSIDE_HTTPX2.findall(text)):
                names[module_name(path)] = found
    assert set(names) == {"_client.httpx2_inside"}
    assert len(names["_client.httpx2_inside"]) > 6


# Of uvicorn's protocol class and of the requests that it has read; likewise.
_INSIDE_UVICORN = re.compile(
    r"\buvicorn\.protocols\b|\bHttpToolsProtocol\b|\bRequestResponseCycle\b"
    r"|\bSTATUS_LINE\b|\bHEADER(?:_VALUE)?_RE\b"
)


def test_one_module_knows_what_is_inside_of_uvicorn() -> None:
    names = {
        module_name(path): set(found)
        for path in python_files()
        if (found := _INSIDE_UVICORN.findall(path.read_text()))
    }
    assert set(names) == {"_forward.uvicorn_inside"}
    assert len(names["_forward.uvicorn_inside"]) > 4


def public_classes() -> list[type[Any]]:
    named = (getattr(enclavia, name) for name in enclavia.__all__)
    return [each for each in named if isinstance(each, type)]


def test_public_classes_are_named_as_they_are_imported() -> None:
    classes = public_classes()
    assert len(classes) > 30
    for cls in classes:
        assert cls.__module__ == "enclavia", cls
        assert pickle.loads(pickle.dumps(cls)) is cls
    assert typing.get_type_hints(enclavia.Attestation)["pcrs"] == Mapping[int, bytes]


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_the_source_of_public_classes_is_found(cls: type[Any]) -> None:
    """As ``Client??`` in a notebook asks for it."""
    source = inspect.getsource(cls)
    assert re.match(rf"(@.*\n)*class {cls.__name__}\b", source), source[:200]
    assert inspect.getsourcefile(inspect.unwrap(cls)) != enclavia.__file__
    if cls is not enclavia.DebugModeWarning:  # which has Python's own constructor
        assert inspect.signature(cls) == inspect.signature(cls, follow_wrapped=False)


class Own(enclavia.Client):
    """A user's subclass."""


def test_a_subclass_of_a_public_class_has_its_own_source() -> None:
    assert inspect.getsource(Own).startswith("class Own(enclavia.Client):")
    assert inspect.unwrap(Own) is Own
    assert not hasattr(Own("wss://e.example", pcrs=PINNED), "__wrapped__")
    assert not hasattr(enclavia.Client("wss://e.example", pcrs=PINNED), "__wrapped__")
