"""Ratings and movies, and the one way from a history to a model's input."""
