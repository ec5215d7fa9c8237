"""The card of an exported model: what it is, how to run it, how good it is, what it was made of, for people."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline.common.errors import InputError
from input_pipeline.proposers import leakage
from mail_jax.export import folder, scripts

Splits = dict[str, dict[str, Any]]

_FRONT = """---
library_name: mail_jax
pipeline_tag: image-segmentation
license: other
tags:
- referring-image-segmentation
- jax
---
"""
_LICENCE = """What the weights may be used for is for whoever trained them to say, here and in `license` above, and
depends on what they were trained on. mail_jax itself is under Apache-2.0. The photos of COCO stand under the terms of
Flickr's users, some of them non-commercial; annotations of COCO are under CC BY 4.0; those of RefCOCO and its relatives
have terms of their own."""


def read_metrics(path: str) -> Splits:
  """Reads what `mail_jax.evaluate --json` wrote: metrics by DATASET/SPLIT.

  Raises:
    InputError: it cannot be read, or holds nothing of the kind.
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
  """Whatever is named DATASET/SPLIT and has numbers, at any depth."""
  for name, value in report.items() if isinstance(report, dict) else ():
    if "/" in name and isinstance(value, dict) and _numbers(value):
      yield name, value
    else:
      yield from _splits(value)


def write(about: Mapping[str, Any], tokenizer_package: str, splits: Splits) -> str:
  """Writes the card.

  Args:
    about: what `config.json` will hold.
    tokenizer_package: what the scripts need to read text.
    splits: from `read_metrics`; may be empty.
  """
  parts = [
    _title(about),
    _use(about, tokenizer_package),
    _metrics(about, splits),
    _origin(about, splits),
  ]
  return _FRONT + "\n\n".join([*parts, f"## Licence\n\n{_LICENCE}"]) + "\n"


def _title(about: Mapping[str, Any]) -> str:
  config, model = about["config"], about["config"]["model"]
  return f"""# Referring image segmentation, trained on `{config["dataset"]}`

A photo, a sentence and, where there are any, masks of the instances in the photo go in; the mask of what the sentence
means comes out, and how much each instance is meant. It is a model of mail_jax, after MaIL (arXiv 2111.10747):
{about["parameters"] / 1e6:.2f} M parameters, {model["depth"]} layers of width {model["width"]}, photos as squares of
{config["image_size"]} pixels in patches of {model["patch_size"]}, up to {config["max_instances"]} instances,
{config["max_tokens"]} word pieces. It learned from {about["step"]} updates of {config["batch_size"]} sentences each."""


def _use(about: Mapping[str, Any], tokenizer_package: str) -> str:
  text = """## Use

With mail_jax:

```python
from mail_jax.segmenter import Segmenter

result = Segmenter.load("FOLDER")("photo.jpg", "the leftmost star")  # and instance masks, bool [k, h, w]
result.mask  # at the photo's size
```

`python -m mail_jax.predict --checkpoint FOLDER` and `python -m mail_jax.evaluate --checkpoint FOLDER` take it, too."""
  rows = [
    f"| `{folder.PLACES[form]}` | `{script}` | numpy, pillow, {tokenizer_package}, {package} |"
    for form, (script, package) in scripts.SCRIPTS.items()
    if form in about["formats"]
  ]
  if not rows:
    return text
  return "\n".join([
    f"{text}\n\nWithout mail_jax, each of these runs by itself on a photo, a sentence and instance masks (or none):\n",
    "| | script | needs |",
    "| --- | --- | --- |",
    *rows,
    '\n```\npython FOLDER/SCRIPT photo.jpg "the leftmost star" mask.png masks.npy\n```\n',
    "They take `image` uint8 [b, s, s, 3], `instances` uint16 [b, g, s, s] (bit k % 16 of plane k // 16: instance k),",
    "`num_instances`, `tokens` and `num_tokens` int32, and give `logits` [b, s, s] and `selection_logits` [b, k + 1]",
    "(the last one: none of them) for any b.",
    f"`{scripts.PREPROCESSING}` makes these inputs from a photo, and a mask from these outputs.",
  ])  # fmt: skip


def _metrics(about: Mapping[str, Any], splits: Splits) -> str:
  config, kept, parts = about["config"], about["metrics"], ["## Metrics, in percent\n"]
  if splits:
    columns = list(dict.fromkeys(name for row in splits.values() for name in _numbers(row)))
    parts += ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for split, row in splits.items():
      cells = (_cell(name, _numbers(row).get(name)) for name in columns)
      parts.append(f"| {split} | {' | '.join(cells)} |")
    parts.append("\nBy `mail_jax.evaluate`, every sentence at the original size of its photo.\n")
  if kept:
    some = (
      f"{config['eval_expressions']} sentences" if config["eval_expressions"] else "all sentences"
    )
    numbers = ", ".join(f"{name} {_cell(name, value)}" for name, value in _numbers(kept).items())
    parts.append(
      f"In training, on {some} of `{config['dataset']}/{config['eval_split']}` at most: {numbers}."
    )
  if not splits and not kept:
    parts.append(
      "Unknown: this checkpoint was not evaluated, and no `--metrics` were given when it was exported."
    )
  return "\n".join(parts).rstrip()


def _numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
  numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
  return {k: v for k, v in numbers.items() if k != "step"}  # of the checkpoint, no metric


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
    "## Where it comes from\n",
    f"- Data: `{config['dataset']}`, its training sentences; started from {start}; seed {config['seed']}.",
    f"- Instance masks: {_instances(splits)}",
    f"- Text: {about['tokenizer']['kind']}, `{about['tokenizer']['file']}`.",
    f"- The whole config is in `{folder.ABOUT}`, with the SHA-256 of every file.",
    f"- Exported on {about['date']} from step {about['step']} with {versions}.",
  ])  # fmt: skip


def _instances(splits: Splits) -> str:
  found = {name: row["instances"] for name, row in splits.items() if "instances" in row}
  if not found:
    return (
      "the checkpoint does not say whose they were, nor what their detector had seen. `mail_jax.evaluate` says it "
      "beside its numbers; `--metrics` brings that here."
    )
  who = sorted({f"{f['from']}, learned from {f['trained_on']}" for f in found.values()})
  said = leakage.warnings(found)
  return "; ".join(who) + "." + "".join(f"\n  - {line}" for line in said)
