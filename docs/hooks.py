"""What `make docs` adds to the pages: the config keys and the commands.

MkDocs calls these functions while it builds the site (mkdocs.yml, `hooks`).
"""

import argparse
import ast
import importlib
import inspect
import itertools
import pathlib
import posixpath
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^()\s]+)\)")
# Pages that this file fills in, and what makes their content.
_MARK = "<!-- made when the site is built -->"


def on_page_markdown(markdown: str, page, config, files) -> str:
  """Fills in a page and drops links to files that the site does not have."""
  makers = {"reference/config.md": config_tables, "reference/commands.md": command_sections}
  if page.file.src_uri == "reference/api.md" and (names := undocumented(markdown)):
    raise _error(f"docs/reference/api.md: undocumented: {', '.join(names)}")
  if maker := makers.get(page.file.src_uri):
    if _MARK not in markdown:
      raise _error(f"docs/{page.file.src_uri}: no line {_MARK}")
    markdown = markdown.replace(_MARK, "\n".join(maker()))
  folder = posixpath.dirname(page.file.src_uri)
  markdown = link_colab(markdown, folder, config.repo_url)
  return _only_inner_links(markdown, folder, config.repo_url)


def _error(message: str) -> Exception:
  from mkdocs.exceptions import PluginError

  return PluginError(message)


def link_colab(markdown: str, folder: str, repository: str | None) -> str:
  """Adds a link behind each notebook that opens it in Colab, if the repository is on GitHub.

  Args:
    markdown: the page.
    folder: of the page, in docs/.
    repository: `repo_url` in mkdocs.yml.
  """
  host = "https://github.com/"
  if not (repository or "").startswith(host):
    return markdown
  root = f"https://colab.research.google.com/github/{repository.removeprefix(host).rstrip('/')}"

  def replace(match: re.Match) -> str:
    if not match[3].endswith(".ipynb"):
      return match[0]
    path = posixpath.normpath(posixpath.join("docs", folder, match[3]))
    return f"{match[0]} ([open in Colab]({root}/blob/main/{path}))"

  return _LINK.sub(replace, markdown)


def _only_inner_links(markdown: str, folder: str, repository: str | None) -> str:
  """Turns links to files outside docs/ into links to the repository, or without one into text."""

  def replace(match: re.Match) -> str:
    image, text, target = match.groups()
    if image or "://" in target or target.startswith(("#", "mailto:")):
      return match[0]
    path, _, anchor = target.partition("#")
    inside = posixpath.normpath(posixpath.join(folder, path))
    outside = posixpath.normpath(posixpath.join("docs", inside))
    if (ROOT / "docs" / inside).exists() and not inside.startswith("../"):
      return match[0]
    if not (ROOT / outside).exists():
      return match[0]
    if repository is None:
      return text
    end = f"#{anchor}" if anchor else ""
    return f"[{text}]({repository.rstrip('/')}/blob/main/{outside}{end})"

  parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
  return "".join(part if part.startswith("```") else _LINK.sub(replace, part) for part in parts)


def _import_ours() -> None:
  for path in (ROOT, ROOT / "tests" / "support"):
    if str(path) not in sys.path:
      sys.path.insert(0, str(path))


def undocumented(markdown: str) -> list[str]:
  """Returns the public names of the page of the Python API that lack a docstring, or that it lacks.

  Args:
    markdown: the page; each `::: package.module.name` is a public name.
  """
  _import_ours()
  names = re.findall(r"^::: (\S+)$", markdown, flags=re.M)
  exported = importlib.import_module("mail_jax").__all__
  missing = [f"mail_jax.{name} (not in the page)" for name in exported]
  missing = [name for name in missing if name.split()[0] not in names]
  for name in names:
    module, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(module), attribute, None)
    if thing is None:
      missing.append(f"{name} (no such name)")
      continue
    if not (thing.__doc__ or "").strip():
      missing.append(name)
    if inspect.isclass(thing):
      missing += [f"{name}.{inner}" for inner in _undocumented_members(thing)]
  return missing


def _undocumented_members(cls: type) -> Iterator[str]:
  """Yields public methods, properties and fields of a class that lack a docstring."""
  for name, member in vars(cls).items():
    if name.startswith("_"):
      continue
    member = getattr(member, "__func__", member)
    is_method = inspect.isfunction(member) or isinstance(member, property)
    if is_method and not (member.__doc__ or "").strip():
      yield name
  listed = re.findall(r"^ *(\w+(?:, \w+)*):", cls.__doc__ or "", re.M)
  documented = {name for names in listed for name in names.split(", ")}
  body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
  assert isinstance(body, ast.ClassDef)
  for node, following in itertools.pairwise([*body.body, ast.Pass()]):
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      has_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
      if not (node.target.id.startswith("_") or node.target.id in documented or has_text):
        yield node.target.id


def config_keys(source: str) -> Iterator[tuple[str, str]]:
  """Yields each key that `get_config` sets and its comment: the lines above it, or behind it.

  Args:
    source: the text of configs/base.py.
  """
  lines = source.splitlines()
  tree = ast.parse(source)
  (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "get_config")
  for node in function.body:
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
      continue
    key = ast.unparse(node.targets[0]).partition(".")[2]
    above = []
    for line in reversed(lines[: node.lineno - 1]):
      if not line.strip().startswith("#"):
        break
      above.insert(0, line.strip().removeprefix("#").strip())
    assert node.end_lineno is not None and node.end_col_offset is not None
    inside = [_comment(line) for line in lines[node.lineno - 1 : node.end_lineno - 1]]
    behind = _comment(lines[node.end_lineno - 1][node.end_col_offset :])
    yield key, " ".join(part for part in [*above, *inside, behind] if part)


def _comment(line: str) -> str:
  return line.partition("# ")[2].strip()


def _cell(text: str) -> str:
  return text.replace("|", "\\|").replace("<", "&lt;")


def config_tables() -> Iterator[str]:
  """Yields the lines of a table for each section of configs/base.py."""
  _import_ours()
  base = importlib.import_module("configs.base").get_config()
  tables: dict[str, list[str]] = {"": []}
  about: dict[str, str] = {}
  for key, comment in config_keys((ROOT / "configs/base.py").read_text(encoding="utf-8")):
    value: Any = base
    for part in key.split("."):
      value = value[part]
    if hasattr(value, "to_dict"):
      tables[key], about[key] = [], comment
      continue
    kind = type(value).__name__
    row = f"| `{key}` | `{_cell(repr(value))}` | {kind} | {_cell(comment)} |"
    tables[key.rpartition(".")[0]].append(row)
  for section, rows in tables.items():
    yield f"\n## {f'`{section}`' if section else 'Run'}\n"
    if about.get(section):
      yield about[section] + "\n"
    yield "| key | default | type | meaning |\n| --- | --- | --- | --- |"
    yield from rows


def command_sections() -> Iterator[str]:
  """Yields the lines of a section for each command, from its parser."""
  _import_ours()
  commands = importlib.import_module("input_pipeline.common.command_line").COMMANDS
  parsers = importlib.import_module("help_pages").parsers()

  def called(text: str) -> str:
    for name, command in commands.items():
      text = re.sub(rf"python -m {re.escape(command.module)}(?![\w.])", f"mail-jax {name}", text)
    return text

  titles = {called(name): parser for name, parser in parsers.items()}
  # The parts of a command behind it.
  order = [f"mail-jax {name}" for name in commands]
  for title in sorted(titles, key=lambda title: order.index(" ".join(title.split()[:2]))):
    parser = titles[title]
    inner = len(title.split(" --")[0].split()) > 2 or " --" in title
    yield f"\n{'###' if inner else '##'} {title}\n"
    yield from _prose(called(parser.description or ""))
    rows = list(_options(parser))
    if rows:
      yield "\n| argument | default | meaning |\n| --- | --- | --- |"
      yield from (called(row) for row in rows)


def _prose(text: str) -> Iterator[str]:
  """Yields a description with its examples as code."""
  for block in re.split(r"\n\s*\n", text.strip()):
    lines = block.splitlines()
    if all(re.match(r"(\s{2,}|mail-jax |python |pip |PYTHONPATH)", line) for line in lines):
      yield "\n```sh"
      yield from lines
      yield "```\n"
      continue
    code: list[str] = []
    for line in lines:
      if re.match(r"\s*(mail-jax |python )", line) or (code and code[-1].endswith("\\")):
        code.append(line)
        continue
      if code:
        yield "\n".join(["\n```sh", *code, "```\n"])
        code = []
      yield _plain(line)
    if code:
      yield "\n".join(["\n```sh", *code, "```\n"])
    yield ""


def _plain(text: str) -> str:
  return re.sub(r"(?<!`)\bdocs/(\w+)/([\w-]+\.md)", r"[\2](../\1/\2)", text).replace("<", "&lt;")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
  """Yields a row of a table for each argument of a parser."""
  for action in parser._actions:
    if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
      continue
    if isinstance(action, argparse._SubParsersAction):
      for choice in action._choices_actions:
        yield f"| `{choice.dest}` | | {_cell(_plain(choice.help or ''))} |"
      continue
    metavar = action.metavar or (
      "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    metavar = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if action.nargs == 0:
      metavar = ""
    name = ", ".join(action.option_strings) or str(metavar)
    shown = f"{name} {metavar}".strip() if action.option_strings else name
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    text = re.sub(r"\s*\(default:? [^()]*\)", "", text)
    default = ""
    if action.required and action.option_strings:
      default = "required"
    elif action.default not in (None, False, [], "", argparse.SUPPRESS):
      default = f"`{_cell(str(action.default))}`"
    yield f"| `{_cell(shown)}` | {default} | {_cell(_plain(text))} |"
