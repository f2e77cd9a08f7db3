"""Evaluation: the same numbers for every model."""
