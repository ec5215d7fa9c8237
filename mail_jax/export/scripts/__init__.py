"""Scripts that run an exported model with none of our packages installed; `mail_jax.export` puts copies beside it."""

# A format: the script, and the package that it needs besides NumPy, Pillow and the tokenizer's.
SCRIPTS = {
  "stablehlo": ("run_stablehlo.py", "jax"),
  "saved_model": ("run_saved_model.py", "tensorflow"),
  "onnx": ("run_onnx.py", "onnxruntime"),
}
# The package of each kind of tokenizer.
TOKENIZER_PACKAGES = {"wordpiece": "tokenizers", "sentencepiece": "sentencepiece"}
PREPROCESSING = "preprocessing.py"
