"""What is changed, and the tests that should see it, the fastest first."""

from typing import NamedTuple

_MODELS = (
  "tests/models/test_mask_selection.py",
  "tests/models/test_model_parts.py",
  "tests/models/test_models.py",
)
_STEP = (
  "tests/train/test_losses.py",
  "tests/train/test_update.py",
  "tests/train/test_train_step.py",
)
_TF = ("tests/tf/test_loader.py", "tests/tf/test_eval_batches.py")

MODULES: dict[str, tuple[str, ...]] = {
  "mail_jax/models/appearance.py": _MODELS,
  "mail_jax/models/attention.py": (*_MODELS, "tests/models/test_encoder.py"),
  "mail_jax/models/decoder.py": (*_MODELS, "tests/models/test_decoder.py"),
  "mail_jax/models/embeddings.py": (*_MODELS, "tests/models/test_neighbours.py"),
  "mail_jax/models/encoder.py": (*_MODELS, "tests/models/test_encoder.py"),
  "mail_jax/models/folding.py": (*_MODELS, "tests/models/test_decoder.py"),
  "mail_jax/models/instances.py": ("tests/models/test_instance_geometry.py", *_MODELS),
  "mail_jax/models/mail.py": (*_MODELS, "tests/models/test_no_target.py"),
  "mail_jax/models/mask_selection.py": (*_MODELS, *_STEP),
  "mail_jax/models/resize.py": (*_MODELS, "tests/evaluate/test_segmentation_evaluator.py"),
  "mail_jax/train/step.py": (*_STEP, "tests/train/test_accumulation.py"),
  "mail_jax/train/losses.py": _STEP,
  "mail_jax/train/optim.py": ("tests/train/test_optim.py", *_STEP),
  "mail_jax/evaluate/segmentation.py": (
    "tests/evaluate/test_segmentation_evaluator.py",
    "tests/evaluate/test_protocols.py",
  ),
  "mail_jax/evaluate/matching.py": (
    "tests/evaluate/test_given_masks.py",
    "tests/evaluate/test_predictions.py",
  ),
  "mail_jax/evaluate/boundary.py": ("tests/evaluate/test_boundary.py",),
  "input_pipeline/tf/train_samples.py": _TF,
  "input_pipeline/tf/eval_rows.py": _TF,
  "input_pipeline/tf/sample_order.py": ("tests/tf/test_sample_order.py", *_TF),
  "input_pipeline/tf/record_reader.py": (*_TF, "tests/tf/test_damaged_records.py"),
  "input_pipeline/tf/zoom.py": ("tests/tf/test_zoom.py", *_TF),
  "input_pipeline/records.py": ("tests/preprocess/test_records.py",),
  "input_pipeline/masks/segmentation.py": ("tests/masks/test_segmentation.py",),
  "input_pipeline/masks/noise.py": ("tests/masks/test_noise.py",),
  "input_pipeline/preprocess/bit_planes.py": (
    "tests/preprocess/test_preprocess.py",
    "tests/preprocess/test_records.py",
  ),
  "input_pipeline/preprocess/masks.py": ("tests/preprocess/test_preprocess.py",),
  "input_pipeline/preprocess/images.py": ("tests/preprocess/test_preprocess.py",),
  "input_pipeline/preprocess/model_inputs.py": ("tests/preprocess/test_preprocess.py",),
}


class Change(NamedTuple):
  """A mistake that once went unnoticed.

  Attributes:
    name: in words.
    path: of the module.
    before, after: a part of it, which it has once.
    tests: that see it.
  """

  name: str
  path: str
  before: str
  after: str
  tests: tuple[str, ...] = _STEP


_STEP_PY = "mail_jax/train/step.py"
_SELECTION_PY = "mail_jax/models/mask_selection.py"
CHANGES = (
  Change(
    "the average never moves",
    _STEP_PY,
    "lambda o, n: o + (1 - keep) * (n - o), old, new",
    "lambda o, n: o, old, new",
  ),
  Change(
    "F_M^rho is zero",
    _SELECTION_PY,
    "rho[..., None] * coverage, mask_features",
    "0 * rho[..., None] * coverage, mask_features",
    _MODELS,
  ),
  Change(
    "F_M^rho is spread over the whole map",
    _SELECTION_PY,
    "rho[..., None] * coverage, mask_features",
    "rho[..., None] * jnp.ones_like(coverage), mask_features",
    _MODELS,
  ),
  Change("the weights of the loss are ignored", _STEP_PY, "weights[name] * value", "value"),
  Change(
    "the decoder's gradient does not reach the encoder",
    "mail_jax/models/mail.py",
    "maps = [selected, features]",
    "maps = [jax.lax.stop_gradient(selected), jax.lax.stop_gradient(features)]",
  ),
  Change(
    "the dropouts of instances are exchanged",
    _STEP_PY,
    "drop_instances(drop, valid, instance_dropout, all_instances_dropout)",
    "drop_instances(drop, valid, all_instances_dropout, instance_dropout)",
  ),
  Change(
    "every step has the same key",
    _STEP_PY,
    "jax.random.fold_in(jax.random.key(options.seed), state.step)",
    "jax.random.key(options.seed)",
  ),
  Change(
    "batch statistics never train",
    _STEP_PY,
    'where_finite(batch_stats, old["batch_stats"])',
    'old["batch_stats"]',
  ),
  Change(
    "the learning rate is a step late",
    "mail_jax/train/loop.py",
    "lr = learning_rate_from(config, step, length.steps)",
    "lr = learning_rate_from(config, max(0, step - 1), length.steps)",
  ),
  Change(
    "raw weights are judged in place of the average",
    "mail_jax/train/program.py",
    "return state.averaged if config.ema_decay else state.variables",
    "return state.variables",
  ),
  Change(
    "slots are permuted without `valid`",
    _STEP_PY,
    "jnp.take_along_axis(valid, order, axis=1)",
    "valid",
  ),
  Change("the decoder is never forced", _STEP_PY, "if teacher_forcing:", "if False:"),
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
