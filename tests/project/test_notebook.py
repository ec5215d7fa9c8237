"""The notebook runs from top to bottom, as Jupyter runs it, and shows what its text says."""

import ast
import json
import re
from typing import Any

import pytest
import tiny_run
from PIL import Image

PATH = tiny_run.CHECKOUT / "docs" / "notebooks" / "quickstart.ipynb"
# The demo's recipe, with a model that compiles in seconds.
CONFIG = """
  --config.steps=4 --config.image_size=32 --config.model.width=16 --config.model.depth=1
  --config.model.heads=2 --config.model.patch_size=8 --config.model.decoder_widths=(8,8,8)
  --config.batch_size=8 --config.decode_every=1 --config.eval_expressions=16
  --config.optimizer.warmup_steps=2 --config.vocab_size=320
"""


def _cells(kind: str) -> list[dict[str, Any]]:
  notebook = json.loads(PATH.read_text(encoding="utf-8"))
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def _run(source: str, names: dict[str, Any]) -> Any:
  """Runs a cell; returns the value of its last line if it is an expression, as Jupyter shows it."""
  tree = ast.parse(source)
  shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
  exec(compile(tree, str(PATH), "exec"), names)
  if shown is None:
    return None
  assert isinstance(shown, ast.Expr)
  return eval(compile(ast.Expression(shown.value), str(PATH), "eval"), names)


def test_it_is_kept_without_outputs():
  cells = _cells("code")
  assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
  identifiers = [cell["id"] for kind in ("code", "markdown") for cell in _cells(kind)]
  assert len(set(identifiers)) == len(identifiers)


def test_its_links_lead_somewhere():
  text = "".join("".join(cell["source"]) for cell in _cells("markdown"))
  links = [part.partition(")")[0] for part in text.split("](")[1:]]
  assert links and all((PATH.parent / link).resolve().exists() for link in links), links


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("NOTEBOOK_MINUTES", "0")
  monkeypatch.setenv("NOTEBOOK_SCENES", "40")
  monkeypatch.setenv("NOTEBOOK_FOLDER", str(tmp_path))
  monkeypatch.setenv("NOTEBOOK_CONFIG", CONFIG)
  names: dict[str, Any] = {"__name__": "__main__"}
  values = [_run("".join(cell["source"]), names) for cell in _cells("code")]
  pictures = [value for value in values if isinstance(value, Image.Image)]
  assert len(pictures) == 6
  scene, results, result = names["scene"], names["results"], names["result"]
  # The demo finds what the expressions say.
  colour = [scene.image[mask].mean(0) for mask in scene.instances]
  greenest = max(range(len(colour)), key=lambda k: colour[k][1] - colour[k][0])
  # The dotted triangle is the lower one of the others.
  others = [k for k in range(len(colour)) if k != greenest]
  lower = max(others, key=lambda k: scene.instances[k].any(1).argmax())
  assert [found.selected for found in results[1:]] == [greenest, lower]
  # The word that decides: of two small red triangles, the one above the other.
  printed = capsys.readouterr().out
  lines = re.findall(r"^  (\w+) +(\d+)%", printed, flags=re.M)
  assert [word for word, _ in lines] == result.expression.split()
  assert min(lines, key=lambda line: int(line[1]))[0] == "above"
  assert "done: 4 steps" in printed and (tmp_path / "run" / "progress.png").exists()
  assert names["mine"].mask.shape == scene.image.shape[:2]


@pytest.mark.parametrize("page", ["README.md", "docs/start/quickstart.md"])
def test_it_is_linked(page):
  assert "notebooks/quickstart.ipynb)" in (tiny_run.CHECKOUT / page).read_text(encoding="utf-8")
