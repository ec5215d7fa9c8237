"""Pretrained weights of other projects, as parameters of our model."""
