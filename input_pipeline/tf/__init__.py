"""Records written and read with TensorFlow; no other folder imports it."""
