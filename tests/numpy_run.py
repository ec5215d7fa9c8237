"""Trains on arrays, saves, loads and predicts, on a machine that has no TensorFlow.

Run by `test_without_tf.py`, as a program of its own: `python tests/numpy_run.py WORKDIR`.
"""

import sys

BLOCKED = ("tensorflow", "tensorflow_datasets", "tensorflow_cpu", "tf_keras")
# Importing a module that is None here fails as if it were not installed.
sys.modules.update(dict.fromkeys(BLOCKED))  # pyright: ignore[reportArgumentType, reportCallIssue]

import itertools  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import numpy as np  # noqa: E402
import tiny_run  # noqa: E402

from input_pipeline import records  # noqa: E402
from input_pipeline.tokenizer import SentencePieceTokenizer  # noqa: E402
from mail_jax.segmenter import Segmenter  # noqa: E402
from mail_jax.train import Data, Trainer  # noqa: E402

TEXTS = ("the left half", "the right half")
STEPS = 3


def halves(height: int, width: int) -> np.ndarray:
  """Masks of the left and of the right half of a picture."""
  left = np.arange(width)[None] < width // 2
  return np.stack([np.broadcast_to(side, (height, width)) for side in (left, ~left)])


def batches(tokenizer: SentencePieceTokenizer, size: int, count: int, length: int) -> Iterator:
  """Noise whose halves are the instances, and the two texts, without end."""
  planes = records.pack_planes(halves(size, size))
  tokens, num_tokens, _ = tokenizer([TEXTS[i % 2] for i in range(count)], length)
  for step in itertools.count():
    yield {
      "image": np.random.default_rng(step).integers(0, 256, (count, size, size, 3), np.uint8),
      "instances": np.repeat(planes[None], count, 0),
      "num_instances": np.full(count, 2, np.int32),
      "tokens": tokens,
      "num_tokens": num_tokens,
      "target": halves(size, size)[np.arange(count) % 2],
      "weight": np.ones(count, np.float32),
    }


def main() -> None:
  """Trains, and predicts with and without instance masks."""
  config = tiny_run.get_config()
  config.steps = STEPS
  tokenizer = SentencePieceTokenizer.train(TEXTS, config.vocab_size)
  shape = config.image_size, config.batch_size, config.max_tokens
  data = Data(tokenizer, lambda start: itertools.islice(batches(tokenizer, *shape), start, None))
  Trainer(config, sys.argv[1], data).run()

  segmenter = Segmenter.load(sys.argv[1])
  photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
  for instances in (halves(50, 70), None):
    result = segmenter(photo, TEXTS[0], instances)
    assert result.mask.shape == (50, 70)
    assert np.isfinite(result.probability).all()
    assert len(result.instance_probability) == (0 if instances is None else 2)
  loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
  assert not loaded & set(BLOCKED)
  print("predicted")


if __name__ == "__main__":
  main()
