"""A web server on this machine that is as strict as those of clouds, and a proxy in front of it.

It asks for a password, checks signatures over the bytes of the address as they came, sends to signed
addresses, answers that it is busy, and tells a version (ETag) of every file.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from aiohttp import ClientSession, web
from yarl import URL

KEY = b"key of the signatures"


@dataclass
class Strict:
    """What the server is to do, and what has come so far.

    user: "name:password" that it wants, or "". signed: whether every address must have a signature. redirect:
    whether it sends every unsigned address to a signed one. busy: answers to give before any other, each
    (status, Retry-After). tags: the ETag of files by name, where it is not their hash. addresses: as they
    came.
    """

    folder: Path
    url: str = ""
    user: str = ""
    signed: bool = False
    redirect: bool = False
    busy: list[tuple[int, str]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    addresses: list[str] = field(default_factory=list)

    def sign(self, path: str, query: str = "") -> str:
        """The signed URL of `path`, with characters that are often written in another way."""
        address = f"{path}?{query}{'&' if query else ''}Expires=2000-01-01T00:00:00%2B00:00&scope=a/b+c%20d"
        mac = base64.b64encode(hmac.digest(KEY, address.encode(), "sha256")).decode()
        return f"{self.url}{address}&Signature={mac}"

    def is_signed(self, address: str) -> bool:
        """Whether the signature belongs to this address, byte for byte."""
        address, _, mac = address.rpartition("&Signature=")
        return hmac.compare_digest(
            base64.b64encode(hmac.digest(KEY, address.encode(), "sha256")).decode().encode(), mac.encode()
        )

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """What the server says to a request."""
        address = request.raw_path
        self.addresses.append(address)
        if self.busy:
            status, after = self.busy.pop(0)
            return web.Response(status=status, headers={"Retry-After": after} if after else {})
        wanted = "Basic " + base64.b64encode(self.user.encode()).decode()
        if self.user and request.headers.get("Authorization") != wanted:
            return web.Response(status=401)
        path = address.partition("?")[0]
        if self.redirect and "Signature" not in address:
            return web.Response(status=302, headers={"Location": self.sign(path)})
        if (self.signed or self.redirect) and not self.is_signed(address):
            return web.Response(status=403)
        file = self.folder / unquote(path.lstrip("/"))
        if not file.is_file():
            return web.Response(status=404)
        data = file.read_bytes()
        tag = self.tags.get(file.name) or hashlib.sha256(data).hexdigest()[:16]
        headers = {"ETag": f'"{tag}"'}
        if (part := request.http_range) and part.start is not None:
            last = min(part.stop, len(data)) - 1
            headers["Content-Range"] = f"bytes {part.start}-{last}/{len(data)}"
            return web.Response(status=206, body=data[part.start : last + 1], headers=headers)
        return web.Response(body=data, headers=headers)


@contextmanager
def strict_server(folder: Path) -> Iterator[Strict]:
    """The server, while the block runs."""
    strict = Strict(folder)
    with running(strict.answer) as strict.url:
        yield strict


@contextmanager
def proxy(to: str) -> Iterator[tuple[str, list[str]]]:
    """A forward proxy that finds every host at the server `to`: its URL, and the addresses it was asked."""
    asked: list[str] = []

    async def forward(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(str(request.url))
        address = f"{to}{URL(request.raw_path).raw_path_qs}" if "://" in request.raw_path else to
        headers = {
            name: value for name, value in request.headers.items() if name in ("Range", "Authorization")
        }
        async with (
            ClientSession() as session,
            session.get(URL(address, encoded=True), headers=headers) as answer,
        ):
            kept = {n: answer.headers[n] for n in ("ETag", "Content-Range") if n in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    with running(forward) as url:
        yield url, asked


@contextmanager
def running(handler) -> Iterator[str]:
    """The URL of a server, in a thread of its own, that answers with handler(request)."""
    loop = asyncio.new_event_loop()

    async def start() -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(handler))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
