"""`prepare` with tiny random networks of transformers, on real images."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks.prepare import write_layout
from input_pipeline.prepare import command as prepare
from input_pipeline.preprocess import bit_planes
from input_pipeline.tf import builder

pytest.importorskip("torch", reason="needs torch and transformers: make extras")
pytest.importorskip("transformers", reason="needs transformers: make extras")

PHOTOS = 20


@pytest.fixture(scope="module")
def layout(realdata, tmp_path_factory) -> pathlib.Path:
  """Real images with up to three refs each."""
  folder = tmp_path_factory.mktemp("photos")
  content = json.loads((realdata / "coco/annotations/instances_train2014.json").read_text())
  used = {row["image_id"] for row in content["annotations"] if not row["iscrowd"]}
  content["images"] = [row for row in content["images"] if row["id"] in used][:PHOTOS]
  (folder / "some.json").write_text(json.dumps(content))
  count = write_layout(folder, str(realdata / "coco/train2014"), str(folder / "some.json"), 1)
  assert count == PHOTOS
  return folder


def _prepared(layout, model, data_dir, batch_size) -> dict[int, tuple[np.ndarray, np.ndarray]]:
  """Returns masks and scores by image."""
  prepare.main(
    [
      *("--dataset", "refcoco_unc", "--refer_root", str(layout / "refer")),
      *("--images", str(layout / "photos"), "--instances", f"huggingface:{model}"),
      *("--data_dir", str(data_dir), "--batch_size", str(batch_size), "--nms_iou", "1"),
    ]
  )
  read = {}
  for fields in builder.open_dataset(str(data_dir), "refcoco_unc").as_dataset(split="train"):
    planes = bit_planes.decode_png(fields["instances"].numpy(), int(fields["height"]))
    scores = fields["instance_score"].numpy()
    read[int(fields["image_id"])] = bit_planes.unpackbits(planes, len(scores)), scores
    assert fields["instances_from"].numpy() == b"huggingface"
    assert fields["instances_trained_on"].numpy() == b"unknown"
  return read


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["mask2former", pytest.param("sam", marks=pytest.mark.slow)])
def test_records_of_a_network_do_not_depend_on_the_batch(kind, layout, tmp_path, monkeypatch):
  import tiny_segmenters

  from input_pipeline.proposers import huggingface

  monkeypatch.setattr(huggingface, "POINTS_PER_SIDE", 3)
  getattr(tiny_segmenters, kind)(tmp_path / "model")
  one, four = (_prepared(layout, tmp_path / "model", tmp_path / str(size), size) for size in (1, 4))
  assert len(one) == PHOTOS
  assert sum(len(scores) for _, scores in one.values()) >= PHOTOS
  for image_id, (masks, scores) in one.items():
    other_masks, other_scores = four[image_id]
    np.testing.assert_allclose(scores, other_scores, rtol=1e-4)
    assert (masks == other_masks).mean() > 0.9999
