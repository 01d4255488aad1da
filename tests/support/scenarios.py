"""What a page does with enclavia, and what it reports. The same code runs in Chromium (Pyodide)
and, without a browser, in CPython beside tests/support/fake_page.py.

Each takes the enclave's facts and returns what can be written as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import io
import time
from typing import Any

import enclavia
from enclavia import AsyncChannel, AsyncClient, Channel, Client, Forwarder, Pcrs

Enclave = dict[str, Any]

SIZE = 50_000_000


def pcrs_of(enclave: Enclave) -> Pcrs:
    pcr0, pcr1, pcr2 = (bytes.fromhex(each) for each in enclave["pcrs"])
    return Pcrs(pcr0=pcr0, pcr1=pcr1, pcr2=pcr2)


def client_of(enclave: Enclave, **options: Any) -> AsyncClient:
    given = {"pcrs": pcrs_of(enclave), "root": enclave["root"].encode(), **options}
    given |= {name: enclave[name] for name in ("timeout", "patience") if name in enclave}
    return AsyncClient(enclave["url"], **given)


def error_of(error: BaseException) -> list[str]:
    return [type(error).__name__, str(error)]


async def verified(enclave: Enclave) -> Any:
    async with client_of(enclave) as client:
        answer = await client.get("/hello")
        return {
            "status": answer.status_code,
            "text": answer.text,
            "form": client.attestation.form,
            "pcr0": client.attestation.pcrs[0].hex(),
            "valid": client.attestation.valid_until is not None,
        }


async def wrong_pins(enclave: Enclave) -> Any:
    right = pcrs_of(enclave)
    pins = Pcrs(pcr0=b"\xab" * 48, pcr1=right.pcr1, pcr2=right.pcr2)
    async with AsyncClient(enclave["url"], pcrs=pins, root=enclave["root"].encode()) as client:
        await client.post("/never", content=b"a secret")
    return None


async def refused(enclave: Enclave) -> Any:
    """Each setting that a browser cannot carry out, and what is said of it."""
    said = {}
    for name, value in {
        "upgrade_headers": {"authorization": "a secret"},
        "verify": False,
        "proxy": "http://127.0.0.1:3128",
        "keepalive": 20.0,
        "via": "unix:/run/user/0/enclavia.sock",
    }.items():
        try:
            client_of(enclave, **{name: value})
        except Exception as error:
            said[name] = error_of(error)
    try:
        Forwarder(enclave["url"], pcrs=pcrs_of(enclave))
    except Exception as error:
        said["Forwarder"] = error_of(error)
    return said


async def many_at_once(enclave: Enclave) -> Any:
    async with client_of(enclave) as client:
        answers = await asyncio.gather(*(client.get(f"/echo?n={n}") for n in range(100)))
        stats = client.stats
    return {
        "right": [answer.text for answer in answers] == [f"n={n}" for n in range(100)],
        "channels": stats.channels,
    }


async def bytes_each_way(enclave: Enclave, size: int = 0) -> Any:
    size = size or enclave.get("size", SIZE)
    body = hashlib.shake_128(b"up").digest(1 << 20)
    digest = hashlib.sha256()
    async with client_of(enclave) as client:
        at = time.perf_counter()
        async with client.stream("GET", f"/bytes?n={size}") as answer:
            async for piece in answer.aiter_raw():
                digest.update(piece)
        down = time.perf_counter() - at

        async def pieces() -> Any:
            left = size
            while left:
                piece = body[:left]
                left -= len(piece)
                yield piece

        at = time.perf_counter()
        sent = await client.post("/sha256", content=pieces(), timeout=120)
        up = time.perf_counter() - at
        times = []
        for _ in range(30):
            at = time.perf_counter()
            await client.get("/hello")
            times.append(time.perf_counter() - at)
        opened = []
        for _ in range(10):
            at = time.perf_counter()
            async with client_of(enclave):
                opened.append(time.perf_counter() - at)
    expected = hashlib.sha256()
    left = size
    while left:
        expected.update(body[:left])
        left -= min(left, len(body))
    return {
        "down": digest.hexdigest(),
        "up": sent.text == expected.hexdigest(),
        "down_mb_s": round(size / down / 1e6, 1),
        "up_mb_s": round(size / up / 1e6, 1),
        "get_ms": round(sorted(times)[15] * 1000, 2),
        "connect_ms": round(sorted(opened)[5] * 1000, 2),
    }


async def downloaded(enclave: Enclave) -> Any:
    """A file by :meth:`AsyncClient.download`, with its progress."""
    seen = []
    path = enclave.get("folder", "/tmp") + "/downloaded"
    size = enclave.get("size", SIZE)
    async with client_of(enclave) as client:
        await client.download(f"/bytes?n={size}", path, progress=lambda done, _: seen.append(done))
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "sha256": digest,
        "steps": len(seen) > 1,
        "last": seen[-1],
        "sorted": seen == sorted(seen),
    }


async def timed_out(enclave: Enclave) -> Any:
    async with client_of(enclave, retries=0) as client:
        try:
            await client.get("/slow", timeout=0.2)
        except enclavia.EnclaviaError as error:
            said = error_of(error)
        return [*said, (await client.get("/hello")).text]


async def cancelled(enclave: Enclave) -> Any:
    """A task that waits for an answer, and one that waits for a connection, are cancelled."""
    async with client_of(enclave) as client:
        task = asyncio.ensure_future(client.get("/slow"))
        await asyncio.sleep(0.1)
        task.cancel()
        outcome = await asyncio.gather(task, return_exceptions=True)
        after = (await client.get("/hello")).text
    other = client_of(enclave)
    connecting = asyncio.ensure_future(other.get("/hello"))
    await asyncio.sleep(0)
    connecting.cancel()
    late = await asyncio.gather(connecting, return_exceptions=True)
    await other.aclose()
    return [type(outcome[0]).__name__, after, type(late[0]).__name__]


async def nobody_there(enclave: Enclave) -> Any:
    try:
        async with client_of({**enclave, "url": "ws://127.0.0.1:9"}, patience=0) as client:
            await client.get("/hello")
    except enclavia.EnclaviaError as error:
        return [*error_of(error), error.retryable]


async def channel(enclave: Enclave) -> Any:
    """The channel itself: a stream, a one-shot request, and a fresh document."""
    async with AsyncChannel.connect(
        enclave["url"], pcrs=pcrs_of(enclave), root=enclave["root"].encode()
    ) as opened:
        stream = await opened.open_stream(
            b"GET /hello HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n"
        )
        read = await stream.read()
        one = await opened.request(
            b"GET /hello HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n"
        )
        fresh = await opened.attest()
        return {
            "stream": read.endswith(b"hello"),
            "request": one.endswith(b"hello"),
            "fresh": fresh.form,
            "receipts": len(opened.receipts),
        }


def blocking(enclave: Enclave) -> Any:
    """The blocking client, which waits by JSPI; where there is none, what it says."""
    try:
        with Client(enclave["url"], pcrs=pcrs_of(enclave), root=enclave["root"].encode()) as client:
            texts = [client.get("/hello").text for _ in range(3)]
            with client.stream("GET", "/bytes?n=3000000") as answer:
                size = sum(len(piece) for piece in answer.iter_raw())
            posted = client.post("/sha256", content=b"x" * 2_000_000).text
            said = None
            try:
                client.get("/slow", timeout=0.2)
            except enclavia.ReadTimeout as error:
                said = error_of(error)[0]
        with Channel.connect(
            enclave["url"], pcrs=pcrs_of(enclave), root=enclave["root"].encode()
        ) as channel:
            stream = channel.open_stream(
                b"GET /bytes?n=1000000 HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n"
            )
            with io.BufferedReader(stream) as reader:
                _, _, body = reader.read().partition(b"\r\n\r\n")
    except enclavia.StateError as error:
        return {"error": error_of(error)}
    return {
        "stream": len(body),
        "texts": texts,
        "size": size,
        "posted": posted == hashlib.sha256(b"x" * 2_000_000).hexdigest(),
        "timeout": said,
    }


async def reconnects(enclave: Enclave) -> Any:
    """The enclave ends the connection; the next request has a new one, verified anew."""
    async with client_of(enclave) as client:
        await client.get("/hello")
        await client.get("/drop")
        for _ in range(50):
            if not client.stats.channels:
                break
            await asyncio.sleep(0.05)
        text = (await client.get("/hello")).text
        return {"text": text, "reconnects": client.stats.reconnects}


async def unread(enclave: Enclave) -> Any:
    """An answer that nobody reads."""
    from enclavia._io import web_socket

    web_socket.MOST_WAITING = enclave["most"]  # type: ignore[misc]
    async with (
        client_of(enclave, retries=0) as client,
        client.stream("GET", "/bytes?n=50000000") as answer,
    ):
        await asyncio.sleep(1)
        try:
            async for _ in answer.aiter_raw():
                pass
        except enclavia.EnclaviaError as error:
            return error_of(error)
    return None


async def run(name: str, enclave: Enclave) -> Any:
    """What the scenario returned, or the error that it ended with."""
    try:
        result = globals()[name](enclave)
        return {"result": await result if inspect.isawaitable(result) else result}
    except BaseException as error:
        import traceback

        return {"error": error_of(error), "traceback": traceback.format_exc()}
