"""Generated scenes of shapes, with expressions and a simulated detector."""
