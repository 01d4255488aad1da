"""The core compiled for wasm32, in Pyodide under node: published vectors, documents that this
machine has judged too, and a channel to a local enclave over a JavaScript WebSocket."""

from __future__ import annotations

import inspect
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import node_pyodide
import pytest
import repository
from channels import echo
from documents import AT, NONCE, PCRS, good, good_pki, other_pki
from support import byte_enclave

import enclavia
from enclavia import _core

RELEASES = node_pyodide.RELEASES
NEWEST = RELEASES[0]

# What these files compare with another library is passed over: the other library is not there.
FILES = """
tests/python/core/test_noise.py tests/python/identity/test_attest_vectors.py
"""

PYTEST = """
import importlib.abc, importlib.machinery, os, sys, types
import pytest

def absent(cls, *args, **kwargs):
    pytest.skip(f"{cls.__name__} has no wheel for wasm32", allow_module_level=True)

class AbsentClass(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentClass(f"{cls.__name__}.{name}", (), {"__new__": absent})

class Absent(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentClass(f"{self.__name__}.{name}", (), {"__new__": absent})

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cryptography":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module): ...

sys.meta_path.insert(0, Finder())
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
os.environ["ENCLAVIA_TESTING_LIBRARY"] = "/home/pyodide/libencl_testing.so"
with open("/host/data/libencl_testing.so", "rb") as file:
    library = file.read()
with open("/home/pyodide/libencl_testing.so", "wb") as file:
    file.write(library)
os.chdir("/host/repository")
sys.path.append("/host/repository/tests/support")
options = "-q -rs -p no:cacheprovider -p no:faulthandler --noconftest --override-ini addopts="
code = pytest.main([*options.split(), *argv])
int(code)
"""


def test_published_vectors(tmp_path: Path) -> None:
    node_pyodide.testing_library(tmp_path)
    code, said = node_pyodide.run(NEWEST, PYTEST, tmp_path, *FILES.split())
    assert code == 0, said
    print(said)
    assert "failed" not in said.splitlines()[-1]


# ---- documents


def outcome(case: dict[str, Any]) -> str:
    """How a document is judged. Its source runs under Pyodide, too."""
    pins = [tuple(bytes.fromhex(pin) for pin in case["pins"])]
    policy = _core.Policy(pins, bytes.fromhex(case["root"]), False, True)
    nonce = bytes.fromhex(case["nonce"]) if case["nonce"] else None
    try:
        found = _core.verify(bytes.fromhex(case["document"]), policy, nonce, case["at"])
    except (enclavia.EnclaviaError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return f"verified {found['form']} {found['matched']} {found['timestamp']}"


JUDGE = f"""
import json
from typing import Any
import enclavia
from enclavia import _core

{inspect.getsource(outcome)}
with open("/host/data/cases.json") as file:
    cases = json.load(file)
print(json.dumps([outcome(case) for case in cases]))
0
"""


def spoiled(document: bytes, rng: random.Random) -> bytes:
    """One to three bytes changed, taken out or put in."""
    data = bytearray(document)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0x1B, 0x3B, 0x5B, 0x7B, 0x9B, 0xBB, 0xDB, 0xFF))
            case 2:
                del data[at : at + rng.randint(1, 9)]
            case _:
                # Lengths of 64 bits, which no size on that machine can hold.
                data[at:at] = bytes([rng.choice((0x5B, 0x7B, 0x9B, 0xBB))]) + b"\1" * 8
    return bytes(data)


def cases() -> list[dict[str, Any]]:
    rng = random.Random(16)
    whole = good().encode()
    pins = [PCRS[i].hex() for i in range(3)]
    case = {
        "document": whole.hex(),
        "pins": pins,
        "root": good_pki().root_der.hex(),
        "nonce": NONCE.hex(),
        "at": AT,
    }
    found = [
        case,
        case | {"pins": ["11" * 48, *pins[1:]]},
        case | {"root": other_pki().root_der.hex()},
        case | {"nonce": "00" * 32},
        case | {"at": AT + 10**9},
        case | {"at": 0},
    ]
    found += real_cases()
    found += [case | {"document": whole[:n].hex()} for n in range(0, len(whole), 97)]
    found += [case | {"document": spoiled(whole, rng).hex()} for _ in range(400)]
    return found


OTHER_REAL = ("debug-zero-pcrs-2022-10-12.cose", "bad-signature-2024-07-23.cose")
REAL = repository.ROOT.parent / "shared" / "vectors" / "nitro"
MADE_AT = 1665651482  # Unix seconds, as the document itself says


def real_cases() -> list[dict[str, Any]]:
    """Documents of AWS's hardware, where they are beside the repository: of a production enclave
    (at its own time, a year later, with another PCR0), of a debug enclave, and a spoiled one."""
    if not REAL.exists():
        return []
    document = (REAL / "production-2022-10-13.cose").read_bytes()
    unpinned = _core.Policy(None, _core.AWS_ROOT_G1, False, False)
    pcrs = _core.verify(document, unpinned, None, MADE_AT)["pcrs"]
    assert isinstance(pcrs, dict)
    pins = [pcrs[i].hex() for i in range(3)]
    case = {
        "document": document.hex(),
        "pins": pins,
        "root": _core.AWS_ROOT_G1.hex(),
        "nonce": None,
        "at": MADE_AT,
    }
    others = [(REAL / name).read_bytes().hex() for name in OTHER_REAL]
    return [
        case,
        case | {"at": MADE_AT + 365 * 86400},
        case | {"pins": ["11" * 48, *pins[1:]]},
        *(case | {"document": other} for other in others),
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_documents_are_judged_as_on_this_machine(release: str, tmp_path: Path) -> None:
    all_cases = cases()
    expected = [outcome(case) for case in all_cases]
    assert len({text.partition(":")[0] for text in expected}) > 4
    assert (
        len([text for text in expected if text.startswith("verified nitro")]) >= 1 + REAL.exists()
    )
    (tmp_path / "cases.json").write_text(json.dumps(all_cases))
    code, said = node_pyodide.run(release, JUDGE, tmp_path)
    assert code == 0, said
    got = node_pyodide.loads(said)
    assert got == expected


# ---- randomness, secrets


FIRST_KEY = """
from enclavia import _core
import js, json
def first_key():
    channel = _core.Channel(host="e", port=1, tls=True, path="/", authority="e", headers=(),
        policy=_core.Policy(None, None, True, False), max_in_flight=1, verify=True, ca_file=None,
        proxy=None)
    link = channel.link()
    link.opened()
    return link.take().hex()
"""

# Under node Emscripten asks node for what it asks a browser's crypto.getRandomValues for.
COUNTED = """
const node = process.getBuiltinModule("node:crypto");
globalThis.asked = 0;
globalThis.none = false;
function asks(function_) {
    return (view) => {
        if (globalThis.none) throw new Error("none today");
        globalThis.asked += view.byteLength;
        return function_(view);
    };
}
node.randomFillSync = asks(node.randomFillSync.bind(node));
crypto.getRandomValues = asks(crypto.getRandomValues.bind(crypto));
"""


def test_keys_come_from_the_browser(tmp_path: Path) -> None:
    program = f"""{FIRST_KEY}
before = js.asked
keys = [first_key() for _ in range(8)]
print(json.dumps([keys, js.asked - before]))
0
"""
    code, said = node_pyodide.run(NEWEST, program, tmp_path, before=COUNTED)
    assert code == 0, said
    keys, asked = node_pyodide.loads(said)
    assert len(set(keys)) == 8
    assert all(len(key) == 64 for key in keys)
    assert asked >= 8 * 32


def test_no_randomness_is_no_key(tmp_path: Path) -> None:
    program = f"""{FIRST_KEY}
first_key()
js.eval("globalThis.none = true")
print("before")
print("key", first_key())
0
"""
    code, said = node_pyodide.run(NEWEST, program, tmp_path, before=COUNTED)
    assert code != 0
    assert "before" in said
    assert "none today" in said
    assert "key" not in said.split()


WIPED = """
import ctypes, json, js
from pyodide.ffi import to_js
with open("/host/data/libencl_testing.so", "rb") as file:
    data = file.read()
with open("/home/pyodide/libencl_testing.so", "wb") as file:
    file.write(data)
library = ctypes.CDLL("/home/pyodide/libencl_testing.so")
library.encl_secret_alloc.restype = ctypes.c_void_p
MASK = 0x5A
masked = bytes((i * 37 + 11) % 251 for i in range(64))
secret = library.encl_secret_alloc(ctypes.c_size_t(64))
for i, b in enumerate(masked):
    ctypes.memset(secret + i, b ^ MASK, 1)
find = js.eval('''(heap, masked, mask) => {
    let found = 0;
    outer: for (let at = 0; at + masked.length <= heap.length; at++) {
        for (let i = 0; i < masked.length; i++)
            if (heap[at + i] !== (masked[i] ^ mask)) continue outer;
        found++;
    }
    return found;
}''')
import pyodide_js
needle = to_js(masked)
before = find(pyodide_js._module.HEAPU8, needle, MASK)
library.encl_secret_free(ctypes.c_void_p(secret), ctypes.c_size_t(64))
after = find(pyodide_js._module.HEAPU8, needle, MASK)
print(json.dumps([before, after]))
0
"""


def test_secrets_are_wiped(tmp_path: Path) -> None:
    node_pyodide.testing_library(tmp_path)
    code, said = node_pyodide.run(NEWEST, WIPED, tmp_path)
    assert code == 0, said
    assert node_pyodide.loads(said) == [1, 0]


# ---- a channel


CHANNEL = """
import asyncio, hashlib, json, time
import js
from pyodide.ffi import create_proxy, to_js
import enclavia
from enclavia import _core

with open("/host/data/enclave.json") as file:
    e = json.load(file)
h = bytes.fromhex

async def announced(register):
    notifier, come = _core.Notifier(), asyncio.Event()
    notifier.on_wake(come.set)
    watch = register(notifier, 7)
    await asyncio.wait_for(come.wait(), 60)
    assert notifier.drain() == [7]
    notifier.close()

def connect(pcrs):
    policy = _core.Policy([tuple(map(h, pcrs))], h(e["root"]), False, True)
    channel = _core.Channel(host="127.0.0.1", port=e["port"], tls=False, path="/",
        authority="127.0.0.1", headers=(), policy=policy, max_in_flight=4, verify=True,
        ca_file=None, proxy=None)
    link = channel.link()
    socket = js.WebSocket.new(e["url"])
    socket.binaryType = "arraybuffer"
    sent = []
    loop = asyncio.get_event_loop()

    def pump():
        while socket.readyState == 1 and (message := link.take()):
            sent.append(len(message))
            socket.send(to_js(message))
        wait = link.tick()
        if wait is not None:
            loop.call_later(wait, pump)
        if link.finished and socket.readyState < 2:
            socket.close()

    def received(event):
        rest = event.data.to_bytes()
        assert link.received(rest) == len(rest)

    link.on_work(lambda: loop.call_soon(pump))
    socket.onopen = create_proxy(lambda _: link.opened())
    socket.onmessage = create_proxy(received)
    socket.onclose = create_proxy(lambda event: link.closed(event.code, event.reason))
    socket.onerror = create_proxy(lambda _: None)
    return channel, sent

async def main():
    began = time.perf_counter()
    channel, sent = connect(e["pcrs"])
    await announced(channel.notify_open)
    channel.wait_open(0)
    opened = time.perf_counter() - began
    slots = []
    await announced(lambda n, token: slots.append(channel.reserve(n, token)))
    data = bytes(range(256)) * 2048
    stream = channel.open_stream(slots[0], b"")
    rest, got = memoryview(data), bytearray()
    while len(got) < len(data):
        rest = rest[stream.write(rest[:16384], 0):] if rest else rest
        if stream.readable:
            got += stream.read(1 << 20, 0)
        await asyncio.sleep(0)
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    channel.close()
    wrong, sent_there = connect(["11" * 48, *e["pcrs"][1:]])
    await announced(wrong.notify_open)
    try:
        wrong.wait_open(0)
    except enclavia.PcrMismatch:
        print(json.dumps([len(got), sent_there, opened]))
        return 0
    return 1

await main()
"""


@pytest.mark.parametrize("release", RELEASES)
def test_a_channel_over_a_websocket_of_javascripts(release: str, tmp_path: Path) -> None:
    with byte_enclave(echo) as (local, _):
        facts = {
            "url": local.url,
            "port": int(local.url.rpartition(":")[2].partition("/")[0]),
            "root": local.root.hex() if local.root else "",
            "pcrs": [pcr.hex() for pcr in local.pcrs.as_tuple()],
        }
        (tmp_path / "enclave.json").write_text(json.dumps(facts))
        code, said = node_pyodide.run(release, CHANNEL, tmp_path)
    assert code == 0, said
    echoed, sent_to_the_wrong_one, _ = node_pyodide.loads(said)
    assert echoed == 256 * 2048
    assert len(sent_to_the_wrong_one) == 2  # the key, and the request for the document
    assert sent_to_the_wrong_one[0] == 32


def test_an_extension_that_is_small_enough() -> None:
    """packaging/browser.py refuses a larger one; here that it is the one in the wheel."""
    with zipfile.ZipFile(node_pyodide.wheel()) as packed:
        names = [name for name in packed.namelist() if name.endswith(".so")]
        assert names == ["enclavia/_core.abi3.so"]
        assert packed.getinfo(names[0]).compress_size <= node_pyodide.browser.MOST
        assert {"enclavia/__init__.py", "enclavia/_core.pyi"} <= set(packed.namelist())
