"""The registry of proposers: missing packages, and the example in the documentation."""

import pathlib
import re
import sys

import numpy as np
import pytest

from input_pipeline.common.errors import InputError
from input_pipeline.proposers.registry import open_proposer


@pytest.mark.parametrize(
  ("name", "package"),
  [("felzenszwalb", "skimage"), ("onnx", "onnxruntime"), ("huggingface", "transformers")],
)
def test_a_missing_package_is_an_error_that_names_its_extra(monkeypatch, name, package):
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.delitem(sys.modules, f"input_pipeline.proposers.{name}", raising=False)
  with pytest.raises(InputError, match=rf'needs .*: pip install "mail_jax\[{name}\]"'):
    open_proposer(f"{name}:anything")


def test_the_detector_of_the_documentation_works(tmp_path, monkeypatch):
  text = (pathlib.Path(__file__).parents[2] / "docs/guides/proposals.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  (tmp_path / "my_detector.py").write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  photo = np.zeros((20, 30, 3), np.uint8)
  photo[2:6, 3:9] = 250
  photo[10:18, 12:28] = 210
  (proposals,) = open_proposer("my_detector.MyDetector:200").propose([photo], [1])
  assert proposals.masks.sum((1, 2)).tolist() == [8 * 16, 4 * 6]
  np.testing.assert_array_equal(proposals.masks[1], photo[..., 0] == 250)
  assert (proposals.source, proposals.trained_on) == ("my_detector", "nothing")
  (dim,) = open_proposer("my_detector.MyDetector:230").propose([photo], [1])
  assert len(dim.masks) == 1
