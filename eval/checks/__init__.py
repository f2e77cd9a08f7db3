"""Checks: what a program can verify about an answer; rewards use them, too."""
