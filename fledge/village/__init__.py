"""The village: a built-in world with known truth."""
