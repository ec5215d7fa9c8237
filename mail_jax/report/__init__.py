"""The page about a run: its figures, its charts, what it draws on photos."""
