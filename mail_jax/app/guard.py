"""What stands before Gradio: which addresses there are, how much may be sent, where the page may load from."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# Gradio has more: a proxy, streams, monitoring, calls that pass the queue by. The page and gradio_client need these.
_ADDRESSES = re.compile(
  r"/(|config/?|theme\.css|robots\.txt|favicon\.ico|manifest\.json|(assets|static|svelte)/[\w./@+-]+"
  r"|gradio_api/(info/?|upload|upload_progress|queue/join|queue/data|heartbeat/\w+|startup-events|cancel|reset/?"
  r"|theme\.css|app_id/?|file=(?!\w+:).+))"
)
# The fields of a request are small; what is large is uploaded.
_OTHER_BYTES = 256 * 1024
_UPLOAD = "/gradio_api/upload"
# Gradio's own scripts are inline and evaluate code; nothing may come from, or go to, another host.
_POLICY = (
  "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
  "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; worker-src 'self' blob:; "
  "object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
  (b"content-security-policy", _POLICY.encode()),
  (b"x-content-type-options", b"nosniff"),
  (b"referrer-policy", b"no-referrer"),
)


class _TooMuch(Exception):
  """More was sent than is taken."""


class Guard:
  """ASGI middleware around Gradio's application."""

  def __init__(self, app: App, upload_bytes: int):
    """Args: app is what is guarded; upload_bytes the most that an upload may have, all its parts together."""
    self._app = app
    self._upload_bytes = upload_bytes

  async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Passes a request on, or refuses it: 404 for another address, 413 for too much."""
    if scope["type"] == "lifespan":
      await self._app(scope, receive, send)
      return
    path = scope.get("path", "")
    # Mounted below another address (a proxy's), the path still begins with it.
    path = path.removeprefix(scope.get("root_path", "").rstrip("/"))
    if scope["type"] != "http" or not _ADDRESSES.fullmatch(path) or ".." in path.split("/"):
      await _refuse(send, 404, b'{"detail":"Not Found"}')
      return
    most = self._upload_bytes if path == _UPLOAD else _OTHER_BYTES
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > most:
      await _refuse(send, 413, _too_much(most))
      return
    await self._pass(scope, receive, send, most)

  async def _pass(self, scope, receive: Receive, send: Send, most: int) -> None:
    taken, started = 0, False

    async def counted() -> Message:
      nonlocal taken
      message = await receive()
      taken += len(message.get("body", b""))
      if taken > most:  # a body that did not say beforehand how long it is
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
        await _refuse(send, 413, _too_much(most))


def _too_much(most: int) -> bytes:
  return b'{"detail":"This is too large: up to %d kB are taken here."}' % (most // 1000)


async def _refuse(send: Send, status: int, body: bytes) -> None:
  headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *_HEADERS]
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": body})
