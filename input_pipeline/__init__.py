"""From images, expressions and instance masks to batches."""

import os

# TensorFlow and XLA log at every start; what matters is raised as an exception. They read these
# variables once, when they are first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow announces oneDNN at any log level; reading records does not need it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
