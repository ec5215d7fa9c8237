"""Scripts that run an exported model without our packages, and the preprocessing they share."""

import pathlib
import shutil

import input_pipeline

# For each format the script, and the package that it needs besides NumPy, Pillow and a tokenizer.
SCRIPTS = {
  "stablehlo": ("run_stablehlo.py", "jax, safetensors"),
  "saved_model": ("run_saved_model.py", "tensorflow"),
  "onnx": ("run_onnx.py", "onnxruntime"),
}
# The package that each kind of tokenizer needs.
TOKENIZER_PACKAGES = {
  "wordpiece": "tokenizers",
  "sentencepiece": "sentencepiece",
  "beit3": "sentencepiece",
}
PREPROCESSING = "mail_preprocess"
# Its parts, as paths in `input_pipeline`; they import only each other, by relative imports.
_SHIPPED = (
  "common/__init__.py",
  "common/errors.py",
  "common/untrusted_files.py",
  "preprocess/*.py",
)


def copy(formats: tuple[str, ...], target: pathlib.Path) -> None:
  """Copies the scripts of these formats, and the preprocessing, into an exported folder."""
  names = [SCRIPTS[form][0] for form in formats if form in SCRIPTS]
  for name in names:
    shutil.copyfile(pathlib.Path(__file__).with_name(name), target / name)
  if names:
    copy_preprocessing(target / PREPROCESSING)


def copy_preprocessing(target: pathlib.Path) -> None:
  """Copies the preprocessing as a package that needs nothing else of ours."""
  source = pathlib.Path(input_pipeline.__file__).parent
  for pattern in _SHIPPED:
    for path in sorted(source.glob(pattern)):
      copied = target / path.relative_to(source)
      copied.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, copied)
  (target / "__init__.py").write_text(
    '"""Preprocessing of mail_jax (Apache-2.0), copied by `mail_jax.export`."""\n'
  )
