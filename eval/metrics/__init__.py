"""Metrics as plain functions: one file each, named as the function in it."""
