"""Tokenizers: train, look at, compare; token shards and chat rendering."""
