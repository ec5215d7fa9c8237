"""Limits of the server, and the middleware that applies them before a request is parsed."""

import asyncio
import collections
import dataclasses
import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mail_jax.serve.worker import Worker

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# Clients whose rate is remembered; the one that was seen least recently is forgotten.
_CLIENTS = 10_000
# Seconds of `rate` that a client may use at once.
_BURST = 2.0


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits of a request, and of all requests together.

  Attributes:
    body_megabytes: of a request, in millions of bytes.
    megapixels: of an image, in millions of pixels; a larger one is rejected before decoding.
    images: per request.
    expressions: per image.
    characters: per expression.
    instances: masks per image; the model uses the best of them.
    queue: requests that wait or run; further ones are rejected.
    rate: requests per second of a client, on average; 0 for no limit.
    seconds: until a request is answered.
  """

  body_megabytes: float = 32.0
  megapixels: float = 20.0
  images: int = 8
  expressions: int = 16
  characters: int = 1000
  instances: int = 100
  queue: int = 64
  rate: float = 0.0
  seconds: float = 60.0


class Rates:
  """Limits the rate of each client: a bucket of tokens that fills up at `rate`."""

  def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
    """Starts without clients.

    Args:
      rate: requests per second; 0 for no limit.
      clock: returns seconds.
    """
    self._rate, self._clock = rate, clock
    self._most = max(1.0, _BURST * rate)
    # Of each client: its tokens, and when it had them.
    self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

  def take(self, client: str) -> float:
    """Returns 0 if a client may send a request now, else the seconds until it may."""
    if not self._rate:
      return 0.0
    now = self._clock()
    tokens, then = self._buckets.pop(client, (self._most, now))
    tokens = min(self._most, tokens + (now - then) * self._rate)
    wait = max(0.0, (1 - tokens) / self._rate)
    self._buckets[client] = (tokens if wait else tokens - 1, now)
    if len(self._buckets) > _CLIENTS:
      self._buckets.popitem(last=False)
    return wait


class Guard:
  """ASGI middleware that limits requests with a body: their size, rate, number and time."""

  def __init__(self, app: App, limits: Limits, worker: Worker):
    """Wraps an application.

    Args:
      app: the application.
      limits: of its requests.
      worker: while it is not ready, requests are rejected.
    """
    self._app, self._limits, self._worker = app, limits, worker
    self._rates = Rates(limits.rate)
    self._bytes = int(limits.body_megabytes * 1e6)
    self._requests = 0

  async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Forwards a request, or rejects it before its body is read."""
    if scope["type"] != "http" or scope["method"] != "POST":
      await self._app(scope, receive, send)
      return
    reason = self._refuse(scope)
    if reason is not None:
      await _reject(send, *reason)
      return
    self._requests += 1
    try:
      await self._answer(scope, receive, send)
    finally:
      self._requests -= 1

  def _refuse(self, scope: MutableMapping[str, Any]) -> tuple[int, str, float] | None:
    """Returns status, reason and seconds to wait, if a request cannot be accepted."""
    if self._worker.state != "ready":
      return 503, f"the server is {self._worker.state}", 2.0
    if wait := self._rates.take((scope.get("client") or ("",))[0]):
      return 429, f"more than {self._limits.rate:g} requests per second; try again later", wait
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > self._bytes:
      return *self._too_large(), 0.0
    if self._requests >= self._limits.queue:
      return 429, f"{self._requests} requests are waiting; try again later", 1.0
    return None

  def _too_large(self) -> tuple[int, str]:
    return 413, f"body: larger than {self._limits.body_megabytes:g} MB; send less in a request"

  async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    started, body = False, None

    async def note_start(message: Message) -> None:
      nonlocal started
      started = True
      await send(message)

    async def replay() -> Message:
      nonlocal body
      if body is None:
        return await receive()
      message, body = {"type": "http.request", "body": body, "more_body": False}, None
      return message

    status, reason = 408, "the body did not arrive in time"
    try:
      async with asyncio.timeout(self._limits.seconds):
        body = await self._read(receive)
        if body is None:
          await _reject(send, *self._too_large())
          return
        status, reason = 504, f"not answered within {self._limits.seconds:g} s; try again later"
        await self._app(scope, replay, note_start)
    except TimeoutError:
      if not started:
        await _reject(send, status, reason, 1.0)

  async def _read(self, receive: Receive) -> bytes | None:
    """Returns the body of a request; None if it is too large."""
    parts, size = [], 0
    while True:
      message = await receive()
      parts.append(message.get("body", b""))
      size += len(parts[-1])
      if size > self._bytes:
        return None
      # Also after a disconnect: the answer is sent to nobody.
      if not message.get("more_body"):
        return b"".join(parts)


async def _reject(send: Send, status: int, reason: str, wait: float = 0.0) -> None:
  headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
  if wait:
    headers.append((b"retry-after", b"%d" % math.ceil(wait)))
  await send({"type": "http.response.start", "status": status, "headers": headers})
  await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})
