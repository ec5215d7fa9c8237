"""Options with which XLA compiles much faster; the compiled code is slower."""

import importlib.metadata

OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
# From JAX 0.11 on there is nothing but fusion emitters. Where Apache Beam is tested there is no
# JAX.
try:
  _jaxlib = importlib.metadata.version("jaxlib")
except importlib.metadata.PackageNotFoundError:
  _jaxlib = "0.0"
if tuple(map(int, _jaxlib.split(".")[:2])) < (0, 11):
  OPTIONS["xla_cpu_use_fusion_emitters"] = False


def flags() -> str:
  """Returns the options for the environment variable XLA_FLAGS."""
  return " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
