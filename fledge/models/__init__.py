"""Models: ours, readable and fast, and the Hugging Face folders they live in."""
