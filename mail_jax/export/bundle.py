"""The preparation of text, photo and masks as one file that imports none of our packages.

It is our own source, put together: whoever runs an exported model gets the code that made what the model has learned
from. Annotations are left out, for what they are written with is not on every machine.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence

_HEADER = '''"""What the model beside this file is given of a photo, and what its logits mean at the photo's size.

Put together by `mail_jax.export` from the source of mail_jax (Apache-2.0), so that it is the same code; do not edit.
It needs NumPy, Pillow and the package {package}.
"""
'''
_OURS = ("input_pipeline", "mail_jax", "jaxtyping")
# A module of `input_pipeline`, and what is taken of it; None is all of it.
_SHARED = (
  ("errors", ("InputError",)),
  ("plain_files", None),
  (
    "preprocess",
    (
      "MAX_PIXELS", "MAX_FILE", "FORMATS", "_ORIENTATION", "_TURNS", "_LIMIT_LOCK", "_FORMAT_CATEGORIES",
      "normalise_text", "empty_text", "_without_control", "decode_image", "TooManyPixels", "open_head",
      "_pillows_limit", "_check_pixels", "_too_many", "_rgb", "read_orientation", "open_image",
      "resize_image", "nearest_indices",
      "resize_planes", "check_instances",
    ),
  ),
  ("records", ("PLANE_BITS", "pack_planes")),
)  # fmt: skip
_TOKENIZERS = {
  "wordpiece": (
    ("basic_tokens", None),
    ("tokenizer", ("_LONGEST_WORD", "Tokenizer", "WordPieceTokenizer", "_mark")),
  ),
  "sentencepiece": (
    ("sentencepiece_training", ("PAD",)),
    ("tokenizer", ("_THREADED_BATCH", "Tokenizer", "SentencePieceTokenizer", "_mark")),
  ),
}
_CLASSES = {"wordpiece": "WordPieceTokenizer", "sentencepiece": "SentencePieceTokenizer"}
_LEFT_OUT = ("train",)  # methods that need more than the rest


def preprocessing(kind: str, package: str) -> str:
  """The text of the file.

  Args:
    kind: of the tokenizer.
    package: that this kind needs.
  """
  parts, imports = [], {}
  for module, names in (*_SHARED, *_TOKENIZERS[kind], ("model_inputs", None)):
    source = inspect.getsource(importlib.import_module(f"input_pipeline.{module}"))
    parts += _definitions(source, names)
    imports |= _imports(source)
  body = "\n\n\n".join([*parts, f"ModelTokenizer = {_CLASSES[kind]}"]) + "\n"
  used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
  lines = sorted({line for name, line in imports.items() if name in used}, key=_order)
  return "\n".join([_HEADER.format(package=package), *lines, "", ""]) + "\n" + body


def _order(statement: str) -> tuple[bool, str]:
  """Python's own modules first."""
  module = statement.split()[1].partition(".")[0]
  return module not in sys.stdlib_module_names, statement


def _imports(source: str) -> dict[str, str]:
  """What a module imports of others' packages: the name that it has here, and the statement."""
  found = {}
  for node in ast.parse(source).body:
    if isinstance(node, ast.Import | ast.ImportFrom):
      module = getattr(node, "module", None)
      for alias in node.names:
        if (module or alias.name).partition(".")[0] not in _OURS:
          name = alias.asname or alias.name.partition(".")[0]
          found[name] = ast.unparse(
            ast.ImportFrom(module, [alias], 0) if module else ast.Import([alias])
          )
  return found


def _definitions(source: str, names: Sequence[str] | None) -> Iterator[str]:
  """The source of what a module defines, without annotations, with the comments above it."""
  lines = source.encode().splitlines(keepends=True)  # the positions of `ast` are in bytes
  for node in ast.parse(source).body:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr):
      continue
    if names is None or _defined(node) & set(names):
      first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
      while first and lines[first - 1].startswith(b"#"):
        first -= 1
      yield _without(lines, first, node).decode().rstrip()


def _defined(node: ast.stmt) -> set[str]:
  if isinstance(node, ast.Assign):
    names = (name for target in node.targets for name in ast.walk(target))
    return {name.id for name in names if isinstance(name, ast.Name)}
  return {getattr(node, "name", "")}


def _without(lines: Sequence[bytes], first: int, node: ast.AST) -> bytes:
  """The lines of a node but for its annotations and the methods that are left out."""
  start = [0]
  for line in lines:
    start.append(start[-1] + len(line))
  text = b"".join(lines)

  def at(line: int, column: int) -> int:
    return start[line - 1] + column

  cuts = []
  for inner in ast.walk(node):
    if isinstance(inner, ast.arg) and inner.annotation:
      begin = at(inner.lineno, inner.col_offset) + len(inner.arg.encode())
      cuts.append((begin, _end(inner, at)))
    if isinstance(inner, ast.FunctionDef) and inner.returns:
      begin = text.rindex(b"->", 0, at(inner.returns.lineno, inner.returns.col_offset))
      cuts.append((len(text[:begin].rstrip()), _end(inner.returns, at)))
    if isinstance(inner, ast.FunctionDef) and inner.name in _LEFT_OUT:
      begin = min([inner.lineno, *(d.lineno for d in inner.decorator_list)])
      cuts.append((start[begin - 1], start[min((inner.end_lineno or 0) + 1, len(lines))]))
  kept, position = b"", start[first]
  for begin, end in sorted(cuts):
    if begin >= position:
      kept += text[position:begin]
    position = max(position, end)
  return kept + text[position : _end(node, at)]


def _end(node: ast.AST, at) -> int:
  return at(node.end_lineno, node.end_col_offset)  # pyright: ignore[reportAttributeAccessIssue]
