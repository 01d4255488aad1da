"""The whole way once: a local enclave in production mode in front of a small web application, a
client that verifies it, requests through the channel, and a wrong measurement refused."""

from __future__ import annotations

import hashlib

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

import enclavia
from enclavia.testing import LocalEnclave


async def health(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the workload is well\n")


async def digest(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse({"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})


app = Starlette(routes=[Route("/health", health), Route("/digest", digest, methods=["POST"])])


def flipped(value: bytes) -> bytes:
    return bytes([value[0] ^ 1]) + value[1:]


def main() -> None:
    with LocalEnclave(app, mode="production") as enclave:
        print(f"a local enclave listens on {enclave.url}\n")

        with enclavia.Client(enclave.url, pcrs=enclave.pcrs, root=enclave.root) as client:
            print("verified before any request was sent:")
            print(f"{client.attestation}\n")

            response = client.get("/health")
            print(f"GET /health    {response.status_code}  {response.text.strip()}")

            body = b"only the enclave can read this" * 10_000
            response = client.post("/digest", content=body)
            answer = response.json()
            assert answer["sha256"] == hashlib.sha256(body).hexdigest()
            print(f"POST /digest   {response.status_code}  {answer['bytes']} bytes, hash agrees\n")

        pinned = enclave.pcrs
        wrong = enclavia.Pcrs(pcr0=pinned.pcr0, pcr1=pinned.pcr1, pcr2=flipped(pinned.pcr2))
        try:
            enclavia.Client.connect(enclave.url, pcrs=wrong, root=enclave.root)
        except enclavia.PcrMismatch as error:
            print("a client that pins another image is not let in:")
            print(f"PcrMismatch: {error}")
        else:
            raise SystemExit("a wrong PCR was accepted")


if __name__ == "__main__":
    main()
