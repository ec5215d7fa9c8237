# TensorFlow ships no types, and the stubs that pyright brings are of another version.
from typing import Any

def __getattr__(name: str) -> Any: ...
