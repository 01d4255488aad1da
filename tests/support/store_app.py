"""A workload that keeps files: GET with ranges and ETags, HEAD, PUT, DELETE, and an index of each
directory in the form of nginx's ``autoindex_format json``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
Start = Callable[..., Any]


class Store:
    """A WSGI app. ``files``: by path, with a slash in front."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.methods: list[str] = []
        self.index = True
        self.read_only = False
        self.named: Callable[[str], str] = lambda name: name

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        path = environ["PATH_INFO"].encode("latin-1").decode()
        self.methods.append(f"{method} {path}")
        status, headers, body = self.answer(method, path, environ)
        headers = {"Content-Length": str(len(body)), **headers}
        start(f"{status} X", list(headers.items()))
        return [b"" if method == "HEAD" else body]

    def answer(self, method: str, path: str, environ: Environ) -> tuple[int, dict[str, str], bytes]:
        if method in ("PUT", "DELETE"):
            return self.changed(method, path, environ)
        if path.endswith("/"):
            return self.listed(path)
        if path not in self.files:
            if any(name.startswith(path + "/") for name in self.files):
                return 301, {"Location": path + "/"}, b""
            return 404, {}, b""
        body = self.files[path]
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        headers = {"ETag": etag, "Last-Modified": "Fri, 27 Nov 2020 09:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", environ.get("HTTP_RANGE", ""))
        if wanted is None or environ.get("HTTP_IF_RANGE", etag) != etag:
            return 200, headers, body
        begin, end = int(wanted[1]), min(int(wanted[2] or len(body)) + 1, len(body))
        if begin >= len(body):
            return 416, {"Content-Range": f"bytes */{len(body)}"}, b""
        where = f"bytes {begin}-{end - 1}/{len(body)}"
        return 206, {**headers, "Content-Range": where}, body[begin:end]

    def changed(
        self, method: str, path: str, environ: Environ
    ) -> tuple[int, dict[str, str], bytes]:
        body = environ["wsgi.input"].read()
        if self.read_only:
            return 405, {}, b""
        if method == "DELETE":
            return (204 if self.files.pop(path, None) is not None else 404), {}, b""
        if environ.get("HTTP_IF_NONE_MATCH") == "*" and path in self.files:
            return 412, {}, b""
        self.files[path] = body
        return 201, {}, b""

    def listed(self, path: str) -> tuple[int, dict[str, str], bytes]:
        inside = [name[len(path) :] for name in self.files if name.startswith(path)]
        if not inside and path != "/":
            return 404, {}, b""
        if not self.index:
            return 200, {"Content-Type": "text/html"}, b"<h1>well</h1>"
        entries: dict[str, dict[str, Any]] = {}
        for name in inside:
            first, slash, _ = name.partition("/")
            kind = "directory" if slash else "file"
            entries[first] = {"name": self.named(first), "type": kind}
            if not slash:
                entries[first]["size"] = len(self.files[path + name])
        listing = json.dumps(list(entries.values())).encode()
        return 200, {"Content-Type": "application/json"}, listing
