"""From photos, expressions and instance masks to batches."""

import os

# The libraries below speak up at every start; what matters they raise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Where TensorFlow would use oneDNN it says so at every start, whatever the level; reading records has no use for it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
