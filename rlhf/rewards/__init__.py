"""Rewards that a program gives: one module each, found by its name, with `score(rows, answers) -> list[float]`."""
