"""From photos, expressions and instance masks to batches."""

import os

# The libraries below speak up at every start; what matters they raise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
