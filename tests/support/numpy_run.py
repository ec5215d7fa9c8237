"""Trains on arrays, saves, loads and predicts, on a machine that has no TensorFlow.

Run by `test_without_tf.py`, as a program of its own: `python tests/support/numpy_run.py WORKDIR`.
"""

import sys

BLOCKED = ("tensorflow", "tensorflow_datasets", "tensorflow_cpu", "tf_keras")
# Importing a module that is None here fails as if it were not installed.
sys.modules.update(dict.fromkeys(BLOCKED))  # pyright: ignore[reportArgumentType, reportCallIssue]

import itertools  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402

import numpy as np  # noqa: E402
import tiny_run  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from input_pipeline import preprocess  # noqa: E402
from input_pipeline.preprocess import bit_planes  # noqa: E402
from input_pipeline.preprocess.tokenizer import SentencePieceTokenizer  # noqa: E402
from input_pipeline.shapes import scenes as shapes  # noqa: E402
from mail_jax.predict.segmenter import Segmenter  # noqa: E402
from mail_jax.train.data import Data  # noqa: E402
from mail_jax.train.loop import Trainer  # noqa: E402

STEPS, SCENES = 3, 24


def make_batch(
  scenes: Sequence[shapes.Scene], tokenizer: SentencePieceTokenizer, config: ConfigDict
) -> dict[str, np.ndarray]:
  """Returns a batch of the first target of each scene."""
  referents = [next(i for i, texts in enumerate(scene.expressions) if texts) for scene in scenes]
  texts = [scene.expressions[i][0].text for scene, i in zip(scenes, referents, strict=True)]
  tokens, num_tokens, _ = tokenizer(texts, config.max_tokens)
  size, most = config.image_size, config.max_instances
  masks = [scene.instances.masks[:most] for scene in scenes]
  targets = [
    bit_planes.packbits(scene.targets[i, None]) for scene, i in zip(scenes, referents, strict=True)
  ]
  return {
    "image": np.stack([preprocess.resize_image(scene.image, size) for scene in scenes]),
    "instances": np.stack([preprocess.resize_planes(bit_planes.packbits(m), size) for m in masks]),
    "num_instances": np.array([len(m) for m in masks], np.int32),
    "tokens": tokens,
    "num_tokens": num_tokens,
    "target": np.concatenate([preprocess.resize_planes(t, size) for t in targets]) > 0,
    "weight": np.ones(len(scenes), np.float32),
  }


def main() -> None:
  """Trains, and predicts with and without instance masks."""
  config = tiny_run.get_config()
  config.steps = STEPS
  scenes = [shapes.make_scene("train", 0, index) for index in range(SCENES)]
  expressions = [e.text for scene in scenes for texts in scene.expressions for e in texts]
  tokenizer = SentencePieceTokenizer.train(expressions, config.vocab_size)

  def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
    for step in itertools.count(start):
      chosen = [scenes[(step * config.batch_size + i) % SCENES] for i in range(config.batch_size)]
      yield make_batch(chosen, tokenizer, config)

  Trainer(config, sys.argv[1], Data(tokenizer, batches)).run()

  segmenter = Segmenter.load(sys.argv[1])
  scene = scenes[0]
  for instances in (scene.instances.masks, None):
    result = segmenter(scene.image, expressions[0], instances)
    assert result.mask.shape == scene.image.shape[:2]
    assert np.isfinite(result.probability).all()
    count = 0 if instances is None else min(len(instances), config.max_instances)
    assert len(result.instance_probability) == count
  loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
  assert not loaded & set(BLOCKED)
  print("predicted")


if __name__ == "__main__":
  main()
