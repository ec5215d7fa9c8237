"""Generated scenes of shapes, with expressions and simulated proposals."""
