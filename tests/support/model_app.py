"""A small language-model server: the wire format of the OpenAI and Anthropic APIs, and a model that
says its prompt back word by word. Where it is given tools, it first calls the first of them with
the prompt's last word, and says back what that returned."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


def last_text(messages: list[dict[str, Any]]) -> str:
    """What the last message says, or the tool's result in it: a text, or blocks that have one."""
    content: Any = messages[-1]["content"]
    while not isinstance(content, str):
        content = content[0].get("text") or content[0]["content"]
    return content


def arguments_for(schema: dict[str, Any], words: list[str]) -> dict[str, str]:
    """The last word, as the first parameter."""
    return {next(iter(schema["properties"])): words[-1].strip()}


def has_result(message: dict[str, Any]) -> bool:
    content = message["content"]
    return not isinstance(content, str) and content[0]["type"] == "tool_result"


async def each(things: Any) -> AsyncIterator[Any]:
    """What an SDK's stream gives, of its blocking or of its async client."""
    if hasattr(things, "__aiter__"):
        async for thing in things:
            yield thing
    else:
        for thing in things:
            yield thing


class ModelServer:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.before_answer: Callable[[int], None] = lambda count: None
        self.go_on = threading.Event()
        self.go_on.set()
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.openai, methods=["POST"]),
                Route("/v1/messages", self.anthropic, methods=["POST"]),
            ]
        )

    async def _asked(self, request: Request) -> tuple[dict[str, Any], list[str]]:
        body = await request.json()
        self.asked.append({"headers": dict(request.headers), **body})
        self.before_answer(len(self.asked))
        return body, [f"{word} " for word in last_text(body["messages"]).split()]

    async def _slowly(self, pieces: list[str]) -> AsyncIterator[str]:
        """The first at once, the others when the test says so."""
        yield pieces[0]
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        for piece in pieces[1:]:
            yield piece

    async def openai(self, request: Request) -> Response:
        body, words = await self._asked(request)
        if body["model"] == "busy":
            error = {"message": "too many", "type": "requests", "code": "rate_limit_exceeded"}
            return JSONResponse({"error": error}, 429)
        common = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": body["model"]}
        called = None
        if body.get("tools") and body["messages"][-1]["role"] != "tool":
            tool = body["tools"][0]["function"]
            arguments = json.dumps(arguments_for(tool["parameters"], words))
            function = {"name": tool["name"], "arguments": arguments}
            called = {"id": "call_1", "type": "function", "function": function}
        end = "stop" if called is None else "tool_calls"
        if not body.get("stream"):
            message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
            if called is not None:
                message |= {"content": None, "tool_calls": [called]}
            choice = {"index": 0, "message": message, "finish_reason": end}
            return JSONResponse({**common, "object": "chat.completion", "choices": [choice]})

        def chunk(delta: dict[str, Any], end: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": end}
            part = {**common, "object": "chat.completion.chunk", "choices": [choice]}
            return f"data: {json.dumps(part)}\n\n"

        if called is None:
            parts = [chunk({"content": word}) for word in words]
        else:
            parts = [chunk({"role": "assistant", "tool_calls": [{"index": 0, **called}]})]
        parts += [chunk({}, end), "data: [DONE]\n\n"]
        return StreamingResponse(self._slowly(parts), media_type="text/event-stream")

    async def anthropic(self, request: Request) -> Response:
        body, words = await self._asked(request)
        if body["model"] == "missing":
            error = {"type": "not_found_error", "message": "no such model"}
            return JSONResponse({"type": "error", "error": error}, 404)
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [{"type": "text", "text": "".join(words)}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": len(words)},
        }
        if body.get("tools") and not has_result(body["messages"][-1]):
            tool = body["tools"][0]
            arguments = arguments_for(tool["input_schema"], words)
            use = {"type": "tool_use", "id": "toolu_1", "name": tool["name"], "input": arguments}
            return JSONResponse({**message, "content": [use], "stop_reason": "tool_use"})
        if not body.get("stream"):
            return JSONResponse(message)

        def event(kind: str, **fields: Any) -> str:
            return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"

        def delta(word: str) -> str:
            text = {"type": "text_delta", "text": word}
            return event("content_block_delta", index=0, delta=text)

        start = {**message, "content": [], "stop_reason": None}
        parts = [
            event("message_start", message=start)
            + event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            + delta(words[0]),
            *map(delta, words[1:]),
            event("content_block_stop", index=0),
            event(
                "message_delta",
                delta={"stop_reason": "end_turn", "stop_sequence": None},
                usage={"output_tokens": len(words)},
            ),
            event("message_stop"),
        ]
        return StreamingResponse(self._slowly(parts), media_type="text/event-stream")
