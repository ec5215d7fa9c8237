"""Exported models on real images and expressions: the same masks as the checkpoint's."""

import pathlib

import exported_models
import jax
import numpy as np
import pytest

from input_pipeline import preprocess
from input_pipeline.common import untrusted_pickle
from input_pipeline.preprocess import model_inputs
from input_pipeline.proposers import registry
from mail_jax.export import folder, load
from mail_jax.models.resize import resize_logits

PHOTOS = 100


@pytest.fixture(scope="module")
def requests(realdata) -> list[tuple[np.ndarray, str, np.ndarray]]:
  """Yields images, their expressions and instances; every fourth without instances."""
  refs = []
  for name in ("refcoco+/refs(unc).p", "refcocog/refs(umd).p", "refcoco/refs(unc).p"):
    refs += untrusted_pickle.load(str(realdata / "refer" / name))
  # One expression per image, written by people where there are any.
  by_photo = {ref["image_id"]: ref for ref in sorted(refs, key=lambda ref: ref["split"] != "train")}
  masks = registry.open_proposer(
    f"coco:{realdata}/coco/annotations/instances_train2014.json"
  ).proposer
  rows = []
  for image_id, ref in sorted(by_photo.items())[:PHOTOS]:
    pixels = preprocess.open_image(realdata / f"coco/train2014/COCO_train2014_{image_id:012}.jpg")
    found = masks.propose([pixels], [image_id])[0].masks
    text = ref["sentences"][len(rows) % len(ref["sentences"])]["raw"]
    rows.append((pixels, text, found if len(rows) % 4 else found[:0]))
  assert len(rows) == PHOTOS
  return rows


def _logits(model: load.LoadedModel, requests: list, batch_size: int) -> list[np.ndarray]:
  """Returns logits at the size of each image."""
  config, variables = model.config, model.on_one_device()
  apply = jax.jit(lambda variables, batch: model.apply(variables, batch).logits)
  prepared = [
    model_inputs.prepare(
      pixels,
      [text],
      masks,
      model.tokenizer,
      image_size=config.image_size,
      max_instances=config.max_instances,
      max_tokens=config.max_tokens,
    )[0]
    for pixels, text, masks in requests
  ]
  found = []
  for start in range(0, len(prepared), batch_size):
    rows = prepared[start : start + batch_size]
    batch = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    found.extend(np.asarray(apply(variables, model.complete(batch))))
  resize = jax.jit(resize_logits, static_argnums=2)
  canvas = tuple(max(pixels.shape[i] for pixels, _, _ in requests) for i in (0, 1))
  sizes = [np.array([pixels.shape[:2]], np.int32) for pixels, _, _ in requests]
  resized = [
    np.asarray(resize(one[None, ..., None], size, canvas))
    for one, size in zip(found, sizes, strict=True)
  ]
  return [r[0, : s[0, 0], : s[0, 1]] for r, s in zip(resized, sizes, strict=True)]


def _check(place: pathlib.Path, form: str, requests: list) -> None:
  """Compares a format with the safetensors beside it, in batches of one and of seven."""
  expected = _logits(load.load(str(place)), requests, 10)
  model = load.load(str(place / folder.PLACES[form]))
  assert any((logits > 0).any() and (logits < 0).any() for logits in expected)
  for batch_size in (1, 7):
    close, pixels, largest = 0, 0, 0.0
    for actual, ours in zip(_logits(model, requests, batch_size), expected, strict=True):
      largest = max(largest, float(np.abs(actual - ours).max()))
      differs = (actual > 0) != (ours > 0)
      assert not (differs & (np.abs(ours) > exported_models.MARGIN)).any()
      close, pixels = close + int(differs.sum()), pixels + differs.size
    assert largest < 1e-4
    print(
      f"{form}, by {batch_size}: logits within {largest:.1e}; {close} of {pixels} pixels differ"
    )


@pytest.mark.parametrize("form", ["stablehlo", pytest.param("saved_model", marks=pytest.mark.slow)])
def test_masks_of_real_photos_are_those_of_the_checkpoint(exported, requests, form):
  _check(exported, form, requests)


@pytest.mark.extras
def test_masks_of_real_photos_are_those_of_the_checkpoint_in_onnx(exported_onnx, requests):
  _check(exported_onnx, "onnx", requests)
