"""The guide about custom data: its commands run as they are written, in an empty folder."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from input_pipeline.custom import schema
from mail_jax.config import load_config
from mail_jax.train.optim import warmup_problem

CHECKOUT = pathlib.Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "guides" / "custom-data.md"


def blocks(kind: str) -> list[str]:
  return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
def test_the_commands_of_the_guide_work_in_an_empty_folder(tmp_path):
  script = "set -e\n" + "".join(blocks("bash"))
  assert script.count("python -m ") == 8
  folder = tmp_path / "empty"
  folder.mkdir()
  environment = os.environ | {
    "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(CHECKOUT),
  }
  bash = shutil.which("bash")
  assert bash is not None
  done = subprocess.run(
    [bash, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "no errors" in done.stdout
  assert "mine/val" in done.stdout
  names = {path.name for path in folder.iterdir()}
  assert {"example", "draw.png", "data", "mine.py", "runs", "predictions.png", "ring.png"} <= names
  rows = (folder / "answers" / "predictions.jsonl").read_text().splitlines()
  lines_asked = (folder / "example" / "mine.jsonl").read_text().splitlines()
  assert len(rows) == sum(len(json.loads(line)["sentences"]) for line in lines_asked)


def test_the_recipe_of_the_guide_warms_up_in_less_than_its_steps(tmp_path):
  (written,) = re.findall(r"cat > mine\.py <<'END'\n(.*?)^END$", PAGE.read_text(), re.M | re.S)
  (tmp_path / "mine.py").write_text(written)
  config = load_config(str(tmp_path / "mine.py"))
  assert 0 < config.optimizer.warmup_steps < config.steps / 2
  assert warmup_problem(config, config.steps) == ""


def test_the_example_lines_of_the_guide_are_valid():
  (shown,) = [block for block in blocks("json") if block.count("\n") == 4]
  for number, text in enumerate(shown.splitlines(), 1):
    line, problems = schema.parse(number, text)
    assert line is not None and not problems


def test_the_reference_names_every_key():
  page = (CHECKOUT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
  for key in (*schema.KEYS, *schema.MASK_KEYS, *schema.INSTANCE_KEYS, "value"):
    assert f"`{key}`" in page or f'"{key}"' in page
