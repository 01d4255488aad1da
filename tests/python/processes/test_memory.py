"""What docs/security.md promises about wiping, looked for in the memory of a client's process.

The client runs in a process of its own, and the test reads that process's memory: the answer's
plaintext is made in the test alone, so whatever is found there was left behind by the client.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from enclave_peer import PCRS, EnclavePeer, root
from raw_server import Peer, PeerGone, RawServer
from repository import ROOT

import enclavia

SIZE = 100_000

CLIENT = """
import ctypes, gc, json, sys
import enclavia

facts = json.loads(sys.argv[1])
pcrs = enclavia.Pcrs(**facts["pcrs"])

def tell(word):
    print(word, flush=True)
    sys.stdin.readline()

buffer = bytearray(facts["size"])
channel = enclavia.Channel.connect(
    facts["url"], pcrs=pcrs, root=facts["root"].encode(), timeout=20
)
stream = channel.open_stream(b"x")
got = 0
while got < len(buffer):
    got += stream.readinto(memoryview(buffer)[got:])
tell("read")
ctypes.memset((ctypes.c_char * len(buffer)).from_buffer(buffer), 0, len(buffer))
CLOSE
tell("closed")
"""


def memory_holds(pid: int, secret: bytes) -> list[str]:
    """Where; the writable mappings only."""
    found: list[str] = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            bounds, rights, *rest = line.split(maxsplit=5)
            if "w" not in rights or "r" not in rights:
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            try:
                block = os.pread(memory.fileno(), end - start, start)
            except OSError:
                continue
            if count := block.count(secret):
                found.append(f"{count} times in {bounds} {rest[-1].strip()}")
    return found


def may_read_memory() -> bool:
    child = subprocess.Popen(["sleep", "60"])
    try:
        with open(f"/proc/{child.pid}/mem", "rb", 0):
            return True
    except OSError:
        return False
    finally:
        child.kill()
        child.wait()


pytestmark = pytest.mark.skipif(
    not may_read_memory(), reason="the system lets no process read its child's memory"
)


def look(script: Callable[[EnclavePeer, bytes], None], close: str) -> tuple[list[str], list[str]]:
    """What is found while the plaintext is in use, and after it was closed."""
    secret = os.urandom(16)

    def serve(peer: Peer) -> None:
        enclave = EnclavePeer(peer)
        peer.upgrade()
        enclave.open()
        script(enclave, secret)
        try:
            while True:
                enclave.receive()
        except (PeerGone, OSError):
            pass

    facts: dict[str, Any] = {
        "pcrs": {name: getattr(PCRS, name).hex() for name in ("pcr0", "pcr1", "pcr2")},
        "root": root().decode(),
        "size": SIZE,
    }
    with RawServer(serve) as server:
        facts["url"] = server.url
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT.replace("CLOSE", close), json.dumps(facts)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(Path(enclavia.__file__).parent.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdin is not None and client.stdout is not None
        try:
            assert client.stdout.readline() == "read\n"
            during = memory_holds(client.pid, secret)
            client.stdin.write("\n")
            client.stdin.flush()
            assert client.stdout.readline() == "closed\n"
            return during, memory_holds(client.pid, secret)
        finally:
            client.stdin.close()
            client.wait(20)
            client.stdout.close()


def records_of(secret: bytes, sizes: list[int]) -> list[bytes]:
    text = (secret * (SIZE // len(secret) + 1))[:SIZE]
    pieces: list[bytes] = []
    while text:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def whole_records(enclave: EnclavePeer, secret: bytes) -> None:
    number = enclave.receive()["id"]
    for piece in records_of(secret, [16384, 100, 3000]):
        enclave.send("StreamData", id=number, payload=piece)


def split_records(enclave: EnclavePeer, secret: bytes) -> None:
    """No message ends where a record does."""
    number = enclave.receive()["id"]
    data = b"".join(
        enclave.record("StreamData", id=number, payload=piece)
        for piece in records_of(secret, [16384, 100, 3000])
    )
    for at in range(0, len(data), 1009):
        enclave.send_bytes(data[at : at + 1009])


CLOSINGS = {
    "the stream, then the channel": "stream.close(); channel.close()",
    "the channel alone": "channel.close()",
    "nothing, but both are forgotten": "del stream, channel; gc.collect()",
}


@pytest.mark.parametrize("script", [whole_records, split_records])
@pytest.mark.parametrize("close", CLOSINGS.values(), ids=CLOSINGS)
def test_no_plaintext_of_an_answer_outlives_the_channel(
    script: Callable[[EnclavePeer, bytes], None], close: str
) -> None:
    during, after = look(script, close)
    assert during, "the caller's own buffer holds it: what looks for it does not find it"
    assert after == []
