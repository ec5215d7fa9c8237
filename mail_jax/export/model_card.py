"""The model card of an exported model: description, use, metrics, origin, licence."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline import left_out, mixture, preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.proposers import leakage
from mail_jax.export import folder, scripts

Splits = dict[str, dict[str, Any]]

PICTURES = "pictures"
_TAGS = ["referring-image-segmentation", "jax"]
_LICENCE = """State here and in `license` above what the weights may be used for; it depends on the
training data. mail_jax itself is under Apache-2.0. The images of COCO are under the terms of the
Flickr users who made them, some of them non-commercial; annotations of COCO are under CC BY 4.0;
RefCOCO and its relatives have their own terms."""
_GENERATED = """They were trained on scenes that mail_jax draws itself, without photos or
annotations of other people."""


@dataclasses.dataclass(frozen=True)
class CardOptions:
  """What a card has that the model does not know.

  Attributes:
    metrics: a file written by `mail_jax.evaluate --json`.
    pictures: image files to show, such as of `mail_jax.evaluate --overlays`.
    licence: of the weights, as the Hugging Face Hub names it: `apache-2.0`, `cc-by-nc-4.0`, ...
    name: that the model is loaded by.
  """

  metrics: str | None = None
  pictures: tuple[str, ...] = ()
  licence: str = "other"
  name: str = "FOLDER"

  def check(self) -> Splits:
    """Checks the files, and returns the metrics.

    Raises:
      InputError: a picture or the metrics cannot be read.
    """
    for path in self.pictures:
      try:
        with untrusted_files.open_file(path, path) as file, preprocess.open_header(file):
          pass
      except InputError:
        raise
      except Exception as error:  # Pillow raises all kinds of exceptions for damaged files.
        raise InputError(f"--pictures {path}: not an image ({error})") from error
    return read_metrics(self.metrics) if self.metrics else {}

  def copy_pictures(self, target: pathlib.Path) -> None:
    """Copies the pictures into an exported folder."""
    for name, path in zip(_names(self.pictures), self.pictures, strict=True):
      (target / PICTURES).mkdir(exist_ok=True)
      shutil.copyfile(path, target / name)


def _names(pictures: Sequence[str]) -> list[str]:
  """Returns the names of pictures in an exported folder."""
  suffixes = (pathlib.PurePath(path).suffix.lower() for path in pictures)
  return [f"{PICTURES}/{number}{suffix}" for number, suffix in enumerate(suffixes, 1)]


def read_metrics(path: str) -> Splits:
  """Reads the metrics, by DATASET/SPLIT, that `mail_jax.evaluate --json` wrote.

  Raises:
    InputError: the file cannot be read or has no metrics.
  """
  try:
    report = json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"--metrics {path}: cannot be read ({error})") from error
  splits = dict(_splits(report))
  if not splits:
    raise InputError(f"--metrics {path}: has no metrics; mail_jax.evaluate --json writes them")
  return splits


def _splits(report: Any) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields everything named DATASET/SPLIT that has numbers, at any depth."""
  for name, value in report.items() if isinstance(report, dict) else ():
    if "/" in name and isinstance(value, dict) and _numbers(value):
      yield name, value
    else:
      yield from _splits(value)


def write(
  about: Mapping[str, Any], tokenizer_package: str, splits: Splits, options: CardOptions
) -> str:
  """Returns the text of the card, with the metadata that the Hugging Face Hub shows.

  Args:
    about: the contents of `config.json`.
    tokenizer_package: that the scripts need.
    splits: from `read_metrics`; may be empty.
    options: the rest.
  """
  parts = [
    _title(about),
    _use(about, tokenizer_package, options.name),
    _metrics(about, splits),
    *(["\n".join(f"![Predictions]({name})" for name in _names(options.pictures))]
      if options.pictures else []),
    _origin(about, splits),
    f"## Licence\n\n{_licence(about, options.licence)}",
  ]  # fmt: skip
  return f"---\n{_metadata(about, splits, options.licence)}\n---\n" + "\n\n".join(parts) + "\n"


def _metadata(about: Mapping[str, Any], splits: Splits, licence: str) -> str:
  """Returns YAML in the form of the Hub, with the metrics in percent."""
  import huggingface_hub

  results = [
    huggingface_hub.EvalResult(
      task_type="image-segmentation",
      dataset_type=split.rpartition("/")[0],
      dataset_name=split.rpartition("/")[0],
      dataset_split=split.rpartition("/")[2],
      metric_type=name,
      metric_value=round(100 * value, 2),
    )
    for split, row in splits.items()
    for name, value in _numbers(row).items()
    if isinstance(value, float)
  ]
  data = huggingface_hub.ModelCardData(
    library_name="mail_jax",
    pipeline_tag="image-segmentation",
    license=licence,
    tags=_TAGS,
    model_name=f"mail_jax on {about['config']['dataset']}" if results else None,
    eval_results=results or None,
  )
  return data.to_yaml()


def _licence(about: Mapping[str, Any], licence: str) -> str:
  if licence == "other":
    return _LICENCE
  generated = about["config"]["dataset"] == "shapes" and not about["config"]["init"]
  return f"The weights are under `{licence}`." + (f"\n{_GENERATED}" if generated else "")


def _title(about: Mapping[str, Any]) -> str:
  config, model = about["config"], about["config"]["model"]
  size, millions = config["image_size"], about["parameters"] / 1e6
  return f"""# Referring image segmentation, trained on `{config["dataset"]}`

Inputs are an image, an expression and optional masks of the instances in the image; outputs are the
mask of what the expression refers to, and a score per instance. A model of mail_jax, after MaIL
(arXiv 2111.10747):

- {millions:.2f} M parameters, {model["depth"]} layers of width {model["width"]}
- images of {size} x {size} pixels in patches of {model["patch_size"]} x {model["patch_size"]}
- up to {config["max_instances"]} instances and {config["max_tokens"]} tokens
- weights in {about.get("precision", "float32")}
- trained for {about["step"]} updates, each with {config["batch_size"]} expressions"""


def _use(about: Mapping[str, Any], tokenizer_package: str, name: str) -> str:
  text = f"""## Use

With mail_jax:

```python
from mail_jax import Segmenter

# A third argument may be instance masks, bool [k, h, w].
result = Segmenter.load("{name}")("photo.jpg", "the leftmost star")
result.mask  # at the size of the image
```

`python -m mail_jax.predict` and `python -m mail_jax.evaluate` take `--checkpoint {name}`, too."""
  rows = [
    f"| `{folder.PLACES[form]}` | `{script}` | numpy, pillow, {tokenizer_package}, {package} |"
    for form, (script, package) in scripts.SCRIPTS.items()
    if form in about["formats"]
  ]
  if not rows:
    return text
  return "\n".join([
    f"{text}\n\nEach of these scripts runs without mail_jax:\n",
    "| | script | needs |",
    "| --- | --- | --- |",
    *rows,
    '\n```\npython FOLDER/SCRIPT photo.jpg "the leftmost star" mask.png masks.npy\n```\n',
    "The models take `image` uint8 [b, s, s, 3], `instances` uint16 [b, g, s, s] (bit k % 16 of",
    "plane k // 16 is instance k), `num_instances`, `tokens` and `num_tokens` int32, and return",
    "`logits` [b, s, s] and `selection_logits` [b, k + 1] (the last one: none of the instances),",
    "for any batch size b (ONNX: also 0).",
    f"`{scripts.PREPROCESSING}` makes these inputs from a photo, and a mask from these outputs.",
  ])  # fmt: skip


def _metrics(about: Mapping[str, Any], splits: Splits) -> str:
  config, metrics, parts = about["config"], about["metrics"], ["## Metrics, in percent\n"]
  if splits:
    columns = list(dict.fromkeys(name for row in splits.values() for name in _numbers(row)))
    parts += ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for split, row in splits.items():
      cells = (_cell(name, _numbers(row).get(name)) for name in columns)
      parts.append(f"| {split} | {' | '.join(cells)} |")
    parts.append("\nBy `mail_jax.evaluate`, at the original size of each image.\n")
  if metrics:
    limit = config["eval_expressions"]
    part = f"at most {limit} expressions" if limit else "all expressions"
    numbers = ", ".join(f"{name} {_cell(name, value)}" for name, value in _numbers(metrics).items())
    names = mixture.evaluated(config["dataset"], config["eval_split"]).values()
    splits_evaluated = " and ".join(f"`{name}`" for name in names)
    mean = ", the mean over them" * (len(names) > 1)
    note = left_out.heading(about.get("left_out"))
    parts.append(f"During training, on {part} of {splits_evaluated}{mean}{note}: {numbers}.")
  if not splits and not metrics:
    parts.append("Unknown: the checkpoint was not evaluated, and was exported without `--metrics`.")
  return "\n".join(parts).rstrip()


def _numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
  numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
  return {k: v for k, v in numbers.items() if k != "step"}  # Not a metric.


def _cell(name: str, value: int | float | None) -> str:
  if value is None:
    return ""
  return (
    f"{value:.0f}"
    if isinstance(value, int) or name in ("expressions", "refs")
    else f"{100 * value:.2f}"
  )


def _origin(about: Mapping[str, Any], splits: Splits) -> str:
  config = about["config"]
  start = f"the weights of `{config['init']}`" if config["init"] else "random weights"
  versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
  return "\n".join([
    "## Origin\n",
    f"- Data: the training split of `{config['dataset']}`.{_seen(splits)}{_left_out(about)}",
    f"- Start: {start}; seed {config['seed']}.",
    f"- Instance masks: {_instances(splits)}",
    f"- Tokenizer: {about['tokenizer']['kind']}, `{about['tokenizer']['file']}`.",
    f"- `{folder.ABOUT}` has the whole config and the SHA-256 of every file.",
    f"- Exported on {about['date']} from step {about['step']} with {versions}.",
  ])  # fmt: skip


def _left_out(about: Mapping[str, Any]) -> str:
  return "".join(f"\n  - {line}" for line in left_out.describe(about.get("left_out")))


def _seen(splits: Splits) -> str:
  findings = {n: row["training_images"] for n, row in splits.items() if "training_images" in row}
  return "".join(f"\n  - {line}" for line in leakage.warnings(findings))


def _instances(splits: Splits) -> str:
  origins = {name: row["instances"] for name, row in splits.items() if "instances" in row}
  if not origins:
    return (
      "not recorded in the checkpoint. `mail_jax.evaluate --json` writes their origin, and "
      "`--metrics` adds it here."
    )
  sources = sorted({f"{o['from']}, trained on {o['trained_on']}" for o in origins.values()})
  warnings = leakage.warnings(origins)
  return "; ".join(sources) + "." + "".join(f"\n  - {line}" for line in warnings)
