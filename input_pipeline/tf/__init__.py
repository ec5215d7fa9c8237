"""The TFDS builder and the tf.data loader: the only folder that imports TensorFlow."""
