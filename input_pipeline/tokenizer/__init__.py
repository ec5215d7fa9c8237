"""The command that trains a SentencePiece model."""
