"""Middleware in front of Gradio that limits addresses, sizes of requests, and what pages load."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# The addresses that the page and gradio_client need. Gradio has more: a proxy, streams, monitoring,
# calls that bypass the queue.
_ADDRESSES = re.compile(
  r"/(|config/?|theme\.css|robots\.txt|favicon\.ico|manifest\.json"
  r"|(assets|static|svelte)/[\w./@+-]+"
  r"|gradio_api/(info/?|upload|upload_progress|queue/join|queue/data|heartbeat/\w+"
  r"|startup-events|cancel|reset/?|theme\.css|app_id/?|file=(?!\w+:).+))"
)
# The fields of a request are small; large data is uploaded.
_OTHER_BYTES = 256 * 1024
_UPLOAD = "/gradio_api/upload"
# Gradio's own scripts are inline and evaluate code. Nothing may be loaded from, or sent to, other
# hosts.
_POLICY = (
  "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
  "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
  "media-src 'self' blob:; worker-src 'self' blob:; "
  "object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
  (b"content-security-policy", _POLICY.encode()),
  (b"x-content-type-options", b"nosniff"),
  (b"referrer-policy", b"no-referrer"),
)


class _TooMuch(Exception):
  """The body of a request is too large."""


class Guard:
  """ASGI middleware around Gradio's application."""

  def __init__(self, app: App, upload_bytes: int):
    """Wraps an application.

    Args:
      app: the application.
      upload_bytes: the limit of an upload, with all its parts.
    """
    self._app = app
    self._upload_bytes = upload_bytes

  async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Forwards a request, or rejects it: 404 for an unknown address, 413 for too much data."""
    if scope["type"] == "lifespan":
      await self._app(scope, receive, send)
      return
    path = scope.get("path", "")
    # Behind a proxy that mounts the app below another address, the path still begins with it.
    path = path.removeprefix(scope.get("root_path", "").rstrip("/"))
    if scope["type"] != "http" or not _ADDRESSES.fullmatch(path) or ".." in path.split("/"):
      await _reject(send, 404, b'{"detail":"Not Found"}')
      return
    most = self._upload_bytes if path == _UPLOAD else _OTHER_BYTES
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > most:
      await _reject(send, 413, _too_much(most))
      return
    await self._pass(scope, receive, send, most)

  async def _pass(self, scope, receive: Receive, send: Send, most: int) -> None:
    taken, started = 0, False

    async def counted() -> Message:
      nonlocal taken
      message = await receive()
      taken += len(message.get("body", b""))
      # A body without a declared length.
      if taken > most:
        raise _TooMuch
      return message

    async def with_headers(message: Message) -> None:
      nonlocal started
      if message["type"] == "http.response.start":
        started = True
        message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
      await send(message)

    try:
      await self._app(scope, counted, with_headers)
    except _TooMuch:
      if not started:
        await _reject(send, 413, _too_much(most))


def _too_much(most: int) -> bytes:
  return b'{"detail":"The request is too large; the limit is %d kB."}' % (most // 1000)


async def _reject(send: Send, status: int, body: bytes) -> None:
  headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *_HEADERS]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": body})
