"""A step of a pipeline: records scored by a few threads over one verified channel, a large file
sent and one fetched in bounded memory. Runs against a local enclave; put your own URL and pins in.
"""

from __future__ import annotations

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from enclavia import Client
from enclavia.testing import LocalEnclave

MODEL = bytes(range(256)) * 64 * 1024


async def score(request: Request) -> JSONResponse:
    row = await request.json()
    return JSONResponse({"id": row["id"], "score": row["value"] ** 2})


async def ingest(request: Request) -> JSONResponse:
    digest = hashlib.sha256()
    async for chunk in request.stream():
        digest.update(chunk)
    return JSONResponse({"sha256": digest.hexdigest()})


async def model(request: Request) -> Response:
    return Response(MODEL)


app = Starlette(
    routes=[
        Route("/score", score, methods=["POST"]),
        Route("/ingest", ingest, methods=["POST"]),
        Route("/model.bin", model),
    ]
)


def score_all(client: Client, rows: list[dict[str, int]]) -> list[int]:
    def one(row: dict[str, int]) -> int:
        answer = client.post("/score", json=row, timeout=10).raise_for_status().json()
        assert answer["id"] == row["id"]
        return int(answer["score"])

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, rows))


def send(client: Client, path: Path) -> str:
    with path.open("rb") as file:
        return str(client.post("/ingest", content=file).raise_for_status().json()["sha256"])


def fetch(client: Client, path: Path) -> None:
    with client.stream("GET", "/model.bin") as response, path.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            file.write(chunk)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalEnclave(app) as enclave,
        Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client,
    ):
        scores = score_all(client, [{"id": n, "value": n} for n in range(500)])
        assert scores == [n * n for n in range(500)]
        print(f"scored {len(scores)} records over {client.stats.connects} connection")

        batch = Path(folder) / "batch.bin"
        batch.write_bytes(b"0123456789abcdef" * 1024 * 1024)
        assert send(client, batch) == hashlib.sha256(batch.read_bytes()).hexdigest()
        print(f"sent {batch.stat().st_size >> 20} MiB, the hash agrees")

        fetched = Path(folder) / "model.bin"
        fetch(client, fetched)
        assert fetched.read_bytes() == MODEL
        print(f"fetched {fetched.stat().st_size >> 20} MiB, the bytes agree")


if __name__ == "__main__":
    main()
