"""`mail_jax` trains and predicts without TensorFlow."""

import os
import re
import subprocess
import sys

import tiny_run


def test_training_on_arrays_and_prediction_need_no_tensorflow(tmp_path):
  program = str(tiny_run.CHECKOUT / "tests" / "support" / "numpy_run.py")
  path = os.pathsep.join([str(tiny_run.CHECKOUT), os.environ.get("PYTHONPATH", "")])
  done = subprocess.run(
    [sys.executable, program, str(tmp_path)],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == "predicted"
  assert tiny_run.steps_kept(tmp_path) == [3]


def test_no_file_of_mail_jax_imports_tensorflow():
  files = list((tiny_run.CHECKOUT / "mail_jax").rglob("*.py"))
  # The scripts are data: exported models ship them, and they run without mail_jax.
  files = [path for path in files if path.parent.name != "scripts"]
  assert len(files) > 10
  imports = re.compile(r"^\s*(import|from) tensorflow", re.MULTILINE)
  assert [path.name for path in files if imports.search(path.read_text())] == []
