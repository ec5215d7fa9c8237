"""Parses HTML pages, and checks what must hold for all of ours."""

import base64
import hashlib
import html.parser
import io

from PIL import Image

_VOID = {"meta", "img", "br"}


class Parsed(html.parser.HTMLParser):
  """A page in pieces.

  Attributes:
    tags: (name, attributes) of every start tag, in order.
    texts: what stands right behind a start tag of a name, or between it and the next.
    unbalanced: what is closed and not open, or left open.
  """

  def __init__(self, page: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.texts: dict[str, list[str]] = {}
    self.unbalanced: list[str] = []
    self._open: list[str] = []
    self.feed(page)
    self.close()
    self.unbalanced += self._open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in _VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    if self._open and self._open[-1] == tag:
      self._open.pop()
    else:
      self.unbalanced.append(f"/{tag}")

  def handle_data(self, data):
    if self.tags and data.strip():
      self.texts.setdefault(self.tags[-1][0], []).append(data)

  def ids(self) -> list[str]:
    return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

  def tables(self, name: str) -> list[str]:
    """Names of the tables whose names begin so."""
    return [a["aria-label"] for _, a in self.tags if a.get("aria-label", "").startswith(name)]


def table(page: str, name: str) -> list[list[str]]:
  """Returns the cells of a table, its header first, by the label for screen readers."""
  _, _, rest = page.partition(f'aria-label="{name}"')
  inner, end, _ = rest.partition("</table>")
  assert end, f"no table {name!r}"
  return [_cells(row) for row in inner.split("<tr>")[1:]]


def _cells(row: str) -> list[str]:
  cells: list[str] = []

  class _Row(html.parser.HTMLParser):
    def handle_starttag(self, tag, attrs):
      if tag in ("td", "th"):
        cells.append("")

    def handle_data(self, data):
      if cells:
        cells[-1] += data

  parser = _Row()
  parser.feed(row.partition("</tr>")[0])
  return [cell.strip() for cell in cells]


def check_needs_nothing(page: str) -> list[tuple[int, int]]:
  """Asserts that a page is whole, loads nothing and allows nothing else.

  Returns the sizes of its pictures.
  """
  assert "http://" not in page
  assert "https://" not in page
  assert "url(" not in page
  assert "@import" not in page
  parsed = Parsed(page)
  assert parsed.unbalanced == []
  assert len(set(parsed.ids())) == len(parsed.ids())
  assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
  sizes = []
  for tag, attributes in parsed.tags:
    assert not any(name.startswith("on") or name == "style" for name in attributes)
    if "href" in attributes:
      assert attributes["href"].removeprefix("#") in parsed.ids()
    if "aria-labelledby" in attributes:
      assert attributes["aria-labelledby"] in parsed.ids()
    if "src" in attributes:
      assert tag == "img"
      assert attributes["alt"]
      kind, _, data = attributes["src"].partition(",")
      assert kind == "data:image/jpeg;base64"
      with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        picture.load()
        assert picture.size == (int(attributes["width"]), int(attributes["height"]))
        sizes.append(picture.size)
  (policy,) = [
    a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"
  ]
  (style,) = parsed.texts["style"]
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  allowed = dict(rule.split(" ", 1) for rule in policy.split("; "))
  assert allowed.pop("default-src") == "'none'"
  assert allowed.pop("style-src") == f"'sha256-{digest}'"
  assert allowed.pop("img-src") == "data:"
  assert set(allowed.values()) == {"'none'"}
  return sizes
