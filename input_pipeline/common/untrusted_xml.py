"""Reads untrusted XML with limits; document types, and with them entities, are refused."""

import collections
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.parsers import expat

from input_pipeline.common.errors import InputError

MAX_DEPTH = 20
_CHUNK = 1 << 20


def read_children(data: bytes, name: str) -> Iterator[ElementTree.Element]:
  """Yields the empty root element, then each of its children as soon as it is complete.

  Args:
    data: the XML text.
    name: of the text, for error messages.

  Raises:
    InputError: invalid XML, has a document type, or is nested deeper than MAX_DEPTH.
  """
  parser = expat.ParserCreate()
  builder = ElementTree.TreeBuilder()
  depth = 0
  complete: collections.deque[ElementTree.Element] = collections.deque()

  def start(tag: str, attributes: dict[str, str]) -> None:
    nonlocal builder, depth
    depth += 1
    if depth > MAX_DEPTH:
      raise InputError(f"{name}: nested deeper than {MAX_DEPTH}")
    if depth == 1:
      complete.append(ElementTree.Element(tag, attributes))
      return
    if depth == 2:
      builder = ElementTree.TreeBuilder()
    builder.start(tag, attributes)

  def end(tag: str) -> None:
    nonlocal depth
    depth -= 1
    if depth:
      builder.end(tag)
    if depth == 1:
      complete.append(builder.close())

  def text(characters: str) -> None:
    if depth > 1:
      builder.data(characters)

  def refuse(*_: object) -> None:
    raise InputError(f"{name}: has a document type; remove <!DOCTYPE ...>")

  parser.StartElementHandler = start
  parser.EndElementHandler = end
  parser.CharacterDataHandler = text
  parser.StartDoctypeDeclHandler = refuse
  try:
    for position in range(0, max(len(data), 1), _CHUNK):
      parser.Parse(data[position : position + _CHUNK], position + _CHUNK >= len(data))
      while complete:
        yield complete.popleft()
  except (expat.ExpatError, ValueError, LookupError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{name}: invalid XML ({error})") from error
