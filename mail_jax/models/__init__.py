"""The network: embeddings, encoder, mask selection, decoder."""
