"""Readers of data: one file a format, shared by the stages and by evaluation."""
