"""Pretraining: text to token shards to a base model."""
