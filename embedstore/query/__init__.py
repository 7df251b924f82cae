"""Readers of a run and its collection: recommendations, embeddings, neighbours."""
