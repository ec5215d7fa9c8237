"""What is changed, and where its tests are."""

import pathlib
from typing import NamedTuple

from input_pipeline.common.errors import InputError

MODULES = (
  "mail_jax/models/appearance.py",
  "mail_jax/models/attention.py",
  "mail_jax/models/decoder.py",
  "mail_jax/models/embeddings.py",
  "mail_jax/models/encoder.py",
  "mail_jax/models/folding.py",
  "mail_jax/models/instances.py",
  "mail_jax/models/mail.py",
  "mail_jax/models/mask_selection.py",
  "mail_jax/models/resize.py",
  "mail_jax/train/step.py",
  "mail_jax/train/losses.py",
  "mail_jax/train/optim.py",
  "mail_jax/evaluate/segmentation.py",
  "mail_jax/evaluate/matching.py",
  "mail_jax/evaluate/boundary.py",
  "mail_jax/evaluate/dataset_metrics.py",
  "input_pipeline/tf/loader.py",
  "input_pipeline/tf/train_samples.py",
  "input_pipeline/tf/eval_rows.py",
  "input_pipeline/tf/sample_order.py",
  "input_pipeline/tf/record_reader.py",
  "input_pipeline/tf/zoom.py",
  "input_pipeline/records.py",
  "input_pipeline/masks/segmentation.py",
  "input_pipeline/masks/noise.py",
  "input_pipeline/preprocess/bit_planes.py",
  "input_pipeline/preprocess/images.py",
  "input_pipeline/preprocess/masks.py",
  "input_pipeline/preprocess/model_inputs.py",
  "input_pipeline/preprocess/text.py",
  "input_pipeline/preprocess/tokenizer.py",
)
# Folders whose tests run these modules in their own process.
TESTS = (
  "tests/models",
  "tests/train",
  "tests/masks",
  "tests/preprocess",
  "tests/tf",
  "tests/evaluate",
)


class Change(NamedTuple):
  """A mistake that once went unnoticed.

  Attributes:
    name: in words.
    path: of the module.
    before, after: a part of it, which it has once.
    tests: files with a test that sees it.
  """

  name: str
  path: str
  before: str
  after: str
  tests: tuple[str, ...]

  def apply(self) -> tuple[int, str]:
    """Returns the line, from 1, and the source of the whole module with the mistake.

    Raises:
      InputError: the module does not have the place once.
    """
    source = pathlib.Path(self.path).read_text()
    if (count := source.count(self.before)) != 1:
      raise InputError(
        f"benchmarks/mutation/modules.py: {self.name!r} changes {self.before!r}, which "
        f"{self.path} has {count} times, not once"
      )
    line = source[: source.index(self.before)].count("\n") + 1
    return line, source.replace(self.before, self.after)


_UPDATE = ("tests/train/test_update.py",)
_STEP = "mail_jax/train/step.py"
_SELECTION = "mail_jax/models/mask_selection.py"
_MODELS = ("tests/models/test_mask_selection.py",)
CHANGES = (
  Change(
    "the average never moves",
    _STEP,
    "lambda o, n: o + (1 - keep) * (n - o), old, new",
    "lambda o, n: o, old, new",
    _UPDATE,
  ),
  Change(
    "F_M^rho is zero",
    _SELECTION,
    "rho[..., None] * coverage, mask_features",
    "0 * rho[..., None] * coverage, mask_features",
    _MODELS,
  ),
  Change(
    "F_M^rho is spread over the whole map",
    _SELECTION,
    "rho[..., None] * coverage, mask_features",
    "rho[..., None] * jnp.ones_like(coverage), mask_features",
    _MODELS,
  ),
  Change("the weights of the loss are ignored", _STEP, "weights[name] * value", "value", _UPDATE),
  Change(
    "the decoder's gradient does not reach the encoder",
    "mail_jax/models/mail.py",
    "maps = [selected, features]",
    "maps = [jax.lax.stop_gradient(selected), jax.lax.stop_gradient(features)]",
    _UPDATE,
  ),
  Change(
    "the dropouts of instances are exchanged",
    _STEP,
    "drop_instances(drop, valid, instance_dropout, all_instances_dropout)",
    "drop_instances(drop, valid, all_instances_dropout, instance_dropout)",
    _UPDATE,
  ),
  Change(
    "every step has the same key",
    _STEP,
    "jax.random.fold_in(jax.random.key(options.seed), state.step)",
    "jax.random.key(options.seed)",
    _UPDATE,
  ),
  Change(
    "batch statistics never train",
    _STEP,
    'where_finite(batch_stats, old["batch_stats"])',
    'old["batch_stats"]',
    _UPDATE,
  ),
  Change(
    "the learning rate is a step late",
    "mail_jax/train/loop.py",
    "lr = learning_rate_from(config, step, length.steps)",
    "lr = learning_rate_from(config, max(0, step - 1), length.steps)",
    _UPDATE,
  ),
  Change(
    "raw weights are judged in place of the average",
    "mail_jax/train/program.py",
    "return state.averaged if config.ema_decay else state.variables",
    "return state.variables",
    _UPDATE,
  ),
  Change(
    "slots are permuted without `valid`",
    _STEP,
    "jnp.take_along_axis(valid, order, axis=1)",
    "valid",
    _UPDATE,
  ),
  Change(
    "the target's instance is never decoded",
    "mail_jax/models/mask_selection.py",
    "best = target_instance\n    if best is None:",
    "best = None\n    if best is None:",
    _MODELS,
  ),
  Change(
    "training never asks for the target's instance",
    _STEP,
    "if teacher_forcing:",
    "if False:",
    _UPDATE,
  ),
  Change(
    "stacked masks have no positions",
    "mail_jax/models/embeddings.py",
    '(masks)\n    return x + self.param("position", _INIT, (x.shape[1], self.width))',
    '(masks)\n    return x + 0 * self.param("position", _INIT, (x.shape[1], self.width))',
    _MODELS,
  ),
  Change(
    "a long text keeps its end",
    "input_pipeline/preprocess/tokenizer.py",
    "kept = pieces[: max_tokens - 2]",
    "kept = pieces[-(max_tokens - 2) :]",
    ("tests/preprocess/test_tokenizer.py", "tests/preprocess/test_preprocess.py"),
  ),
)
