"""The docs hold together: links lead somewhere, pictures are there, every page can be found."""

import pathlib
import re
import string

import tiny_run

ROOT = tiny_run.CHECKOUT
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")


def text_of(page: pathlib.Path) -> str:
  """A page without its code."""
  text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
  return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: pathlib.Path) -> set[str]:
  """As GitHub makes them of headings: lower case, no punctuation, a dash for each space."""
  code = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
  headings = re.findall(r"^#+ (.+)$", code, flags=re.M)
  drop = str.maketrans("", "", string.punctuation.replace("-", "").replace("_", ""))
  return {heading.strip().lower().translate(drop).replace(" ", "-") for heading in headings}


def links(page: pathlib.Path) -> list[str]:
  return [link for link in _LINK.findall(text_of(page)) if "://" not in link]


def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading():
  broken = []
  for page in PAGES:
    for link in links(page):
      path, _, anchor = link.partition("#")
      target = (page.parent / path).resolve() if path else page
      if not target.exists() or not target.is_relative_to(ROOT.resolve()):
        broken.append(f"{page.name}: {link}: no such file")
      elif anchor and anchor not in anchors(target):
        broken.append(f"{page.name}: {link}: no such heading")
  assert not broken, "\n".join(broken)
  assert sum(len(links(page)) for page in PAGES) > 50


def test_every_page_of_docs_is_linked_from_the_readme():
  linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
  pages = {page.resolve() for page in ROOT.glob("docs/**/*.md")}
  assert pages - {(ROOT / "docs" / "index.md").resolve()} <= linked


def test_the_page_on_architecture_names_the_folders_that_there_are():
  page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
  tree = next(block for block in page.split("```") if "\ninput_pipeline/\n" in block)
  for package in ("input_pipeline", "mail_jax"):
    part = tree.partition(f"\n{package}/\n")[2]
    part = re.split(r"^\S", part, maxsplit=1, flags=re.M)[0]
    named = set(re.findall(r"^  (\w+)/ ", part, flags=re.M))
    assert named == {init.parent.name for init in ROOT.glob(f"{package}/*/__init__.py")}
  paths = re.findall(r"`((?:input_pipeline|mail_jax|configs)/[\w/.]+)`", page)
  missing = [path for path in paths if path != "mail_jax/configs/" and not (ROOT / path).exists()]
  assert len(paths) > 10 and not missing, missing


def test_the_readme_is_one_screen():
  lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
  assert len(lines) <= 60


def test_the_licence_of_every_pinned_package_is_listed():
  page = (ROOT / "docs" / "reports" / "licences.md").read_text(encoding="utf-8")
  listed = set(re.findall(r"^\| ([A-Za-z0-9_.-]+) \|", page, flags=re.M))
  pinned = set()
  for file in ROOT.glob("requirements*.txt"):
    pinned |= set(re.findall(r"^([A-Za-z0-9_.-]+)==", file.read_text(encoding="utf-8"), flags=re.M))
  assert len(pinned) > 100
  assert pinned <= listed, sorted(pinned - listed)
