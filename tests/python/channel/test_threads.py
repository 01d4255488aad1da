"""Many threads on one channel, and on one stream."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from channels import connect
from resources import Held
from support import eventually

from enclavia.testing import LocalEnclave


def test_16_threads_on_one_channel(echoing: LocalEnclave) -> None:
    with connect(echoing, max_in_flight=8) as channel:

        def work(number: int) -> int:
            count = 0
            for turn in range(40):
                payload = bytes([number, turn]) * (1 + 97 * turn)
                with channel.open_stream(payload, timeout=20) as stream:
                    came = b""
                    while len(came) < len(payload):
                        came += stream.read(65536) or b""
                    assert came == payload
                if turn % 10 == 0:
                    assert channel.attest().pcrs[0] == echoing.pcrs.pcr0
                count += 1
            return count

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(work, range(16))) == 640
        assert channel.stats["streams_open"] == 0
        assert channel.stats["slots_waiting"] == 0
        eventually(lambda: echoing.stats()["slots_open"] == 0)


def test_threads_that_share_one_stream(echoing: LocalEnclave) -> None:
    """Each byte goes to one reader."""
    with connect(echoing) as channel, channel.open_stream() as stream:
        count, total, lock = 0, 400_000, threading.Lock()

        def read() -> None:
            nonlocal count
            while True:
                try:
                    data = stream.read(1000)
                except ValueError:  # closed
                    return
                with lock:
                    count += len(data or b"")
                    if count >= total or not data:
                        return

        readers = [threading.Thread(target=read, daemon=True) for _ in range(4)]
        for thread in readers:
            thread.start()
        for _ in range(40):
            stream.write(bytes(10_000))
        eventually(lambda: count >= total)
        stream.close()
        for thread in readers:
            thread.join(5)
            assert not thread.is_alive()


def test_opening_and_closing_from_many_threads(remote: LocalEnclave) -> None:
    held = Held()
    with ThreadPoolExecutor(8) as pool:
        for future in [
            pool.submit(lambda: connect(remote, timeout=20).close()) for _ in range(100)
        ]:
            future.result()
    held.check_released()
