"""The real OpenAI and Anthropic SDKs over the enclave, against a server that speaks their wire
format."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx2
import pytest
from model_app import ModelServer, each
from support import KINDS, Face, eventually, with_client

import enclavia
from enclavia.testing import Fault, LocalEnclave

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.parametrize("kind", KINDS)
ASK: Any = [{"role": "user", "content": "say it back"}]


@pytest.fixture
def server() -> ModelServer:
    return ModelServer()


@pytest.fixture
def enclave(server: ModelServer) -> Iterator[LocalEnclave]:
    with LocalEnclave(server.app) as enclave:
        yield enclave


def openai_over(client: Face, **options: Any) -> Any:
    cls = openai.AsyncOpenAI if client.is_async else openai.OpenAI
    base_url = client.client.base_url.join("/v1")
    return cls(base_url=base_url, api_key="key", http_client=client.client, **options)


def anthropic_over(client: Face, **options: Any) -> Any:
    cls = anthropic.AsyncAnthropic if client.is_async else anthropic.Anthropic
    return cls(base_url=client.client.base_url, api_key="key", http_client=client.client, **options)


@contextlib.asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


def test_openai_completion(kind: str, enclave: LocalEnclave, server: ModelServer) -> None:
    async def case(client: Face) -> None:
        sdk = openai_over(client)
        for _ in range(3):
            got = await client.call(sdk.chat.completions.create(model="m", messages=ASK))
            assert got.choices[0].message.content == "say it back "

    with_client(kind, enclave, case)
    assert len(server.asked) == 3
    assert server.asked[0]["headers"]["authorization"] == "Bearer key"
    assert enclave.stats()["streams_total"] == 1, "the connection to the workload was not kept"


def test_openai_streams(kind: str, enclave: LocalEnclave, server: ModelServer) -> None:
    server.go_on.clear()

    async def case(client: Face) -> None:
        sdk = openai_over(client)
        chunks = await client.call(
            sdk.chat.completions.create(model="m", messages=ASK, stream=True)
        )
        words = []
        async for chunk in each(chunks):
            if not words:
                assert not server.go_on.is_set(), "the first word must not wait for the others"
                server.go_on.set()
            words.append(chunk.choices[0].delta.content)
        assert words == ["say ", "it ", "back ", None]

    with_client(kind, enclave, case)


def test_openai_stream_left_early(kind: str, enclave: LocalEnclave, server: ModelServer) -> None:
    server.go_on.clear()

    async def case(client: Face) -> None:
        sdk = openai_over(client)
        chunks = await client.call(
            sdk.chat.completions.create(model="m", messages=ASK, stream=True)
        )
        async with entered(chunks):
            async for _ in each(chunks):
                break
        eventually(lambda: enclave.stats()["slots_open"] == 0)

    with_client(kind, enclave, case)
    server.go_on.set()


def test_openai_error_status(kind: str, enclave: LocalEnclave, server: ModelServer) -> None:
    async def case(client: Face) -> None:
        sdk = openai_over(client, max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.call(sdk.chat.completions.create(model="busy", messages=ASK))
        assert caught.value.status_code == 429
        assert caught.value.code == "rate_limit_exceeded"

    with_client(kind, enclave, case)


def test_anthropic_message(kind: str, enclave: LocalEnclave, server: ModelServer) -> None:
    async def case(client: Face) -> None:
        sdk = anthropic_over(client)
        for _ in range(3):
            got = await client.call(sdk.messages.create(model="m", max_tokens=9, messages=ASK))
            assert got.content[0].text == "say it back "
            assert got.usage.output_tokens == 3

    with_client(kind, enclave, case)
    headers = server.asked[0]["headers"]
    assert "key" in (headers.get("x-api-key"), headers.get("authorization", "")[7:])
    assert enclave.stats()["streams_total"] == 1


def test_anthropic_streams(kind: str, enclave: LocalEnclave, server: ModelServer) -> None:
    server.go_on.clear()

    async def case(client: Face) -> None:
        sdk = anthropic_over(client)
        words = []
        async with entered(sdk.messages.stream(model="m", max_tokens=9, messages=ASK)) as stream:
            async for text in each(stream.text_stream):
                if not words:
                    assert not server.go_on.is_set()
                    server.go_on.set()
                words.append(text)
            final = await client.call(stream.get_final_message())
        assert words == ["say ", "it ", "back "]
        assert final.stop_reason == "end_turn"

    with_client(kind, enclave, case)


def test_anthropic_error_status(kind: str, enclave: LocalEnclave, server: ModelServer) -> None:
    async def case(client: Face) -> None:
        sdk = anthropic_over(client)
        with pytest.raises(anthropic.NotFoundError, match="no such model"):
            await client.call(sdk.messages.create(model="missing", max_tokens=9, messages=ASK))

    with_client(kind, enclave, case)
    assert len(server.asked) == 1


Ask = Callable[[Face, int], Awaitable[Any]]


async def ask_openai(client: Face, retries: int) -> str:
    sdk = openai_over(client, max_retries=retries)
    got = await client.call(sdk.chat.completions.create(model="m", messages=ASK))
    return str(got.choices[0].message.content)


async def ask_anthropic(client: Face, retries: int) -> str:
    sdk = anthropic_over(client, max_retries=retries)
    got = await client.call(sdk.messages.create(model="m", max_tokens=9, messages=ASK))
    return str(got.content[0].text)


@pytest.mark.parametrize(
    ("ask", "library"),
    [(ask_openai, openai), (ask_anthropic, anthropic)],
    ids=["openai", "anthropic"],
)
def test_lost_connections(
    kind: str, ask: Ask, library: Any, enclave: LocalEnclave, server: ModelServer
) -> None:
    """A POST in flight is never sent twice by us; the SDK knows that its own may be."""

    def lose_the_first(count: int) -> None:
        if count == 1:
            enclave.drop_connections()

    server.before_answer = lose_the_first

    async def case(client: Face) -> None:
        with pytest.raises(library.APIConnectionError) as caught:
            await ask(client, 0)
        assert isinstance(caught.value.__cause__, enclavia.ConnectionClosed)
        assert len(server.asked) == 1
        server.asked.clear()
        assert await ask(client, 2) == "say it back "
        assert client.client.stats.retries == 0
        assert client.client.stats.reconnects == 2

    with_client(kind, enclave, case)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("ask", "library"),
    [(ask_openai, openai), (ask_anthropic, anthropic)],
    ids=["openai", "anthropic"],
)
def test_timeouts(
    kind: str, ask: Ask, library: Any, enclave: LocalEnclave, server: ModelServer
) -> None:
    enclave.set_faults(Fault.SILENT_STREAMS)

    async def case(client: Face) -> None:
        client.client.timeout = httpx2.Timeout(5, read=0.2)  # which the SDK takes over
        with pytest.raises(library.APITimeoutError) as caught:
            await ask(client, 0)
        assert isinstance(caught.value.__cause__, enclavia.ReadTimeout)

    with_client(kind, enclave, case)
