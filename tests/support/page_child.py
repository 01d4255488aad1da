"""A process of its own in which enclavia is a page's: ``page_child.py CORE``. Each line that it
reads names a scenario and the enclave's facts, and is answered by a line with the report."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path
from typing import Any

import fake_page


async def report_on(name: str, enclave: dict[str, Any]) -> dict[str, Any]:
    import scenarios

    socket = fake_page.WebSocket
    socket.made = socket.sent = socket.most_buffered = 0
    socket.slow = enclave.get("slow", 0.0)
    if enclave.get("switching"):
        function = getattr(scenarios, name)
        report: dict[str, Any] = {
            "result": await fake_page.Switching.call(lambda: function(enclave))
        }
        fake_page.Switching.possible = False
    else:
        report = await scenarios.run(name, enclave)
    for _ in range(200):  # what is being closed has a moment to be closed
        gc.collect()
        if not fake_page.Proxy.living:
            break
        await asyncio.sleep(0.01)
    report["proxies"] = fake_page.Proxy.living
    report |= {"sockets": socket.made, "sent": socket.sent, "most_buffered": socket.most_buffered}
    return report


def main() -> None:
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            name, enclave = json.loads(line)
            print(json.dumps(runner.run(report_on(name, enclave))), flush=True)


if __name__ == "__main__":
    fake_page.install(Path(sys.argv[1]))
    main()
