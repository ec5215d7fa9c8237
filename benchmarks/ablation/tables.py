"""The tables: each row is a change of the demo's config."""

import dataclasses
from collections.abc import Sequence

# Detectors of the table that evaluates with other masks than those of training.
NOISES = ("oracle", "x0.5", "", "x2", "miss0.05", "miss0.2", "miss0.5", "nothing")


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table: a run, and the data that it is evaluated on.

  Attributes:
    name: of the row.
    overrides: `KEY=VALUE` of the recipe; rows of any table with the same overrides share a run.
    share: samples, as a multiple of those of the tables.
    noise: detector of the masks at test time (`prepare --noise`); empty for that of training.
    until: ends the run at an evaluation with this mIoU, without further evaluations.
    seeds: at most this many; None for as many as the other rows.
    trained: detector of the masks in training, likewise.
  """

  name: str
  overrides: tuple[str, ...] = ()
  share: float = 1.0
  noise: str = ""
  until: float = 0.0
  seeds: int | None = None
  trained: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of `docs/reports/results.md`.

  Attributes:
    title: its heading.
    asks: the question that it answers, for readers.
    rows: in order; the unchanged recipe is one of them.
    kind: `metrics` has metrics per row; `reached` the samples to reach an mIoU; `samples` a power
      law through the samples of the rows.
  """

  title: str
  asks: str
  rows: Sequence[Row]
  kind: str = "metrics"


# mIoU on the first expressions of val.
REACH = 0.8
_STEADY = ("optimizer.schedule=constant", "eval_every=250", "eval_expressions=1000")
_ALONE = ("model.appearance=False", "model.neighbours=False")
# The demo decodes one example in four, because the others train the selection. Where only the
# decoder trains it, all are decoded: otherwise three of four samples would be wasted.
_DECODES_ALL = "decode_every=1"
_UNSELECTED = ("model.selection=none", "teacher_forcing=False", _DECODES_ALL)
_MULTIWAY = "model.experts=multiway"
_SOFT = ("model.selection=soft", "teacher_forcing=False")


def _tokens(kind: str, *more: str) -> tuple[str, ...]:
  return (f"model.mask_tokens={kind}", *more)


def _patches(size: int, *widths: int) -> tuple[str, ...]:
  return (f"model.patch_size={size}", f"model.decoder_widths={widths}".replace(" ", ""))


def _size(width: int, depth: int) -> Row:
  change = (f"model.width={width}", f"model.depth={depth}")
  return Row(f"{width} x {depth}", (*change, *_STEADY), share=4, until=REACH, seeds=1)


TABLES = {
  "modality": Table(
    "Instance masks as a modality",
    "How masks reach the encoder, with everything else equal: selection is hard, and the selected "
    "mask joins the decoder. An instance's token also sees the image inside its mask and its "
    "neighbours, except in the row of the masks alone; stacked masks see neither. Models without "
    "masks learn from the decoder only, which then decodes every sample instead of one in four.",
    (
      Row("no instance masks", ("max_instances=0", _DECODES_ALL)),
      Row(
        "no instance masks, patches of 8",
        ("max_instances=0", _DECODES_ALL, *_patches(8, 32, 16, 8)),
        seeds=1,
      ),
      Row("stacked: K channels of one projection", _tokens("stacked")),
      Row("instance, masks alone", _tokens("instance", *_ALONE)),
      Row("instance, without neighbours", ("model.neighbours=False",)),
      Row("instance, without the image inside", ("model.appearance=False",)),
      Row("instance: the default"),
      Row(
        "the preset paper: stacked, soft, no mask path",
        (*_tokens("stacked"), *_SOFT, "model.mask_path=False", "model.image_path=False"),
      ),
    ),
  ),
  "selection": Table(
    "Adaptive mask selection",
    "Which instances join the decoder, and which loss trains the selection. `none` gives all "
    "instances the same weight. Rows that learn from the decoder only decode every sample in "
    "training, the others one in four, as the demo does.",
    (
      Row("none", _UNSELECTED),
      Row("none, no mask path", (*_UNSELECTED, "model.mask_path=False"), seeds=1),
      Row("soft", _SOFT),
      Row("soft, no auxiliary loss", (*_SOFT, "loss.selection=0.0", _DECODES_ALL)),
      Row("soft, no mask path", (*_SOFT, "model.mask_path=False"), seeds=1),
      Row("hard: the default"),
      Row("hard, no auxiliary loss", ("loss.selection=0.0", "teacher_forcing=False", _DECODES_ALL)),
      Row("hard, no mask path", ("model.mask_path=False",)),
      Row("hard, no teacher forcing", ("teacher_forcing=False",), seeds=1),
    ),
  ),
  "masks": Table(
    "Quality of the masks",
    "The same models with other simulated detectors at test time, on val. They were trained with "
    "the default detector, which misses 4 % of the objects.",
    tuple(
      Row(f"{training}, {_name}", change, noise=_noise)
      for training, change in (
        ("with instance dropout", ()),
        ("without it", ("augment.instance_dropout=0.0", "augment.all_instances_dropout=0.0")),
      )
      for _noise, _name in zip(
        NOISES,
        (
          "exact masks", "half the mistakes", "its own detector", "twice the mistakes",
          "misses 5 %", "misses 20 %", "misses 50 %", "no masks",
        ),
        strict=True,
      )
    ),
  ),
  "training": Table(
    "Masks in training",
    "Training on exact masks, on exact masks with the errors of `augment.mask_noise`, and on the "
    "detector's; all judged on the masks of the detector.",
    (
      Row("exact masks", trained="oracle"),
      Row("exact masks, noise 0.5", ("augment.mask_noise=0.5",), trained="oracle"),
      Row("exact masks, noise 1", ("augment.mask_noise=1.0",), trained="oracle"),
      Row("the detector's masks: the default"),
      Row("the detector's masks, noise 0.5", ("augment.mask_noise=0.5",), seeds=1),
    ),
  ),
  "slots": Table(
    "Number of instances",
    "K is the largest number of instances, best scores first. A scene has 3 to 7 objects, and the "
    "detector has false positives.",
    (*(Row(f"K = {k}", (f"max_instances={k}",)) for k in (4, 8)), Row("K = 10: the default"),
     *(Row(f"K = {k}", (f"max_instances={k}",)) for k in (16, 32)),
     Row("K = 8, four times the samples", ("max_instances=8",), share=4, seeds=1),
     Row("K = 10, four times the samples", share=4, seeds=1)),
  ),
  "details": Table(
    "Patches, losses, layers",
    "Settings of the encoder, the decoder and the loss.",
    (
      Row("patches of 8", _patches(8, 32, 16, 8), seeds=2),
      Row("patches of 16", _patches(16, 64, 32, 16, 8)),
      Row("patches of 32: the default"),
      Row("BCE alone, no Dice", ("loss.dice=0.0",)),
      Row("without the raw image in the decoder", ("model.image_path=False",)),
      Row("2 layers instead of 4, four times the samples", ("model.depth=2",), share=4, seeds=1),
      Row("4 layers, four times the samples", share=4, seeds=1),
    ),
  ),
  "experts": Table(
    "Experts, drop path, scale",
    "Parts of BEiT-3's encoder and of its recipe, from scratch: experts per modality in norms, "
    "projections and MLPs, with sub-LayerNorms; residual branches dropped in training; image, "
    "masks and target scaled at random.",
    (
      Row("shared: the default"),
      Row("multiway", (_MULTIWAY,)),
      Row("shared, patches of 16", _patches(16, 64, 32, 16, 8)),
      Row("multiway, patches of 16", (_MULTIWAY, *_patches(16, 64, 32, 16, 8))),
      Row("shared, drop path 0.1", ("model.drop_path=0.1",)),
      Row("shared, scale 0.75 to 1.33", ("augment.scale=(0.75,1.33)",)),
    ),
  ),
  "size": Table(
    "Size of the model",
    f"Samples that a model of width x depth needs to reach an mIoU of {REACH} on the first 1,000 "
    "expressions of val. The learning rate is constant, since the end is not known in advance; the "
    "average of the parameters is evaluated every 8,000 samples.",
    (_size(48, 4), _size(96, 2), _size(96, 4), _size(192, 4)),
    "reached",
  ),
  "samples": Table(
    "Samples",
    "The default with more and fewer samples. Each row is a complete run with its own learning "
    "rate schedule.",
    (
      *(Row("", share=share, seeds=2) for share in (1 / 8, 1 / 4, 1 / 2)),
      Row(""),
      Row("", share=2, seeds=2),
      Row("", share=4, seeds=1),
    ),
    "samples",
  ),
}  # fmt: skip
