"""The GitHub workflows and templates: valid, and true to the rest of the repository."""

import os
import re
import subprocess
import tomllib

import pytest
import tiny_run
import yaml

import mail_jax

ROOT = tiny_run.CHECKOUT
FILES = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"])


def _load(name: str) -> dict:
  return yaml.safe_load((ROOT / ".github" / name).read_text(encoding="utf-8"))


def _release_step(name: str, tag: str, cwd) -> subprocess.CompletedProcess:
  """Runs a step of the release as GitHub does, for a tag."""
  steps = _load("workflows/release.yml")["jobs"]["build"]["steps"]
  (script,) = (step["run"] for step in steps if step.get("id") == name)
  return subprocess.run(
    ["bash", "-e", "-o", "pipefail", "-c", script],
    cwd=cwd,
    env=os.environ | {"GITHUB_REF_NAME": tag},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_are_yaml(file):
  assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_ci_runs_what_every_change_must_pass_on_the_oldest_and_the_newest_python():
  job = _load("workflows/ci.yml")["jobs"]["ci"]
  assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
  project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
  supported = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
  assert job["strategy"]["matrix"]["python"] == [supported[0], supported[-1]]
  assert job["env"]["PYTHON"] == "python${{ matrix.python }}"
  assert re.search(r"^PYTHON \?= ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


def test_a_release_has_the_version_of_the_package():
  done = _release_step("version", f"v{mail_jax.__version__}", ROOT)
  assert done.returncode == 0, done.stdout
  done = _release_step("version", "v99.0.0", ROOT)
  assert done.returncode == 1
  assert f"the tag is v99.0.0, and mail_jax.__version__ is {mail_jax.__version__}" in done.stdout


def test_notes_of_a_release_are_its_section_of_the_changelog(tmp_path):
  changelog = (
    "# Changelog\n\n## [0.2.0] - 2027-01-02\n\n- two\n\n## [0.1.0] - 2027-01-01\n\n- one\n"
  )
  (tmp_path / "CHANGELOG.md").write_text(changelog)
  for tag, text in {"v0.2.0": "- two", "v0.1.0": "- one"}.items():
    assert _release_step("notes", tag, tmp_path).returncode == 0
    assert (tmp_path / "notes.md").read_text().strip() == text
  done = _release_step("notes", "v0.3.0", tmp_path)
  assert done.returncode == 1 and "CHANGELOG.md has no section ## [0.3.0]" in done.stdout


def test_commit_hooks_call_the_environment_of_make_setup():
  (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
  assert repository["repo"] == "local"
  hooks = {hook["id"]: hook["entry"] for hook in repository["hooks"]}
  assert set(hooks) == {"ruff-check", "ruff-format", "codespell"}
  assert all(entry.startswith(".venv/bin/") for entry in hooks.values())
