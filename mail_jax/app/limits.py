"""Limits of the app: on photos and texts, and on requests before they reach Gradio."""

import dataclasses
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError

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
# Characters of a visitor's text that a message repeats.
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits of one request and of all requests together.

  Attributes:
    megapixels: of a photo, in millions of pixels; a larger one is rejected before decoding.
    upload_megabytes: of an uploaded file, in millions of bytes.
    queue: waiting requests; further ones are rejected.
    concurrency: requests that run at the same time.
    expressions: per request.
    words, characters: per expression.
    marks: instances that a visitor marks on a photo.
    mark_points: per stroke.
    examples: scenes or photos to pick from.
  """

  megapixels: float = 20.0
  upload_megabytes: float = 25.0
  queue: int = 32
  concurrency: int = 1
  expressions: int = 8
  words: int = 100
  characters: int = 1000
  marks: int = 8
  mark_points: int = 64
  examples: int = 12


def check_photo(path: str | None, limits: Limits) -> str:
  """Checks the header of an uploaded photo, without decoding its pixels.

  Args:
    path: of the uploaded file; None if nothing was uploaded.
    limits: of the app.

  Returns:
    The path.

  Raises:
    InputError: no file, a file that is not an image, or too many pixels.
  """
  if not path:
    raise InputError("No photo yet: upload one, or pick an example.")
  name = shorten(os.path.basename(path))
  try:
    with (
      untrusted_files.open_file(path, name) as file,
      preprocess.open_header(file, formats=preprocess.WEB_FORMATS) as image,
    ):
      width, height = image.size
  except preprocess.TooManyPixels as error:
    raise InputError(_too_large(name, "far too many", limits)) from error
  # Pillow raises all kinds of exceptions for damaged files.
  except Exception as error:
    raise InputError(
      f"{name} cannot be opened as an image: upload a JPEG, PNG or WebP file."
    ) from error
  if width * height > limits.megapixels * 1e6:
    raise InputError(_too_large(name, f"{width * height / 1e6:.0f}", limits))
  return path


def _too_large(name: str, count: str, limits: Limits) -> str:
  return (
    f"{name} has {count} megapixels; the limit is {limits.megapixels:g}: make the photo smaller "
    "and upload it again."
  )


def read_expressions(text: str | None, limits: Limits) -> list[str]:
  """Splits the typed text into expressions, one per line; empty lines are skipped.

  Raises:
    InputError: no expression, too many of them, or one that is too long.
  """
  lines = [line.strip() for line in (text or "")[: 100 * limits.characters].splitlines()]
  lines = [line for line in lines if line]
  if not lines:
    raise InputError("No expression yet: write what to look for, such as: the cup on the left.")
  if len(lines) > limits.expressions:
    raise InputError(
      f"{len(lines)} lines; the limit is {limits.expressions}: write one expression per line."
    )
  for line in lines:
    words = len(line.split())
    if words > limits.words or len(line) > limits.characters:
      count = f"{words} words" if words > limits.words else f"{len(line)} characters"
      raise InputError(
        f"This expression has {count}; the limit is {limits.words} words and "
        f"{limits.characters} characters: describe it in one sentence."
      )
    _check_readable(line)
  return lines


def _check_readable(line: str) -> None:
  try:
    preprocess.normalise_text(line)
  except InputError as error:
    raise InputError(f"{shorten(line)!r} has no readable text: write what to look for.") from error


def shorten(text: str) -> str:
  """Returns the beginning of a text, to quote it in a message."""
  return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


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
