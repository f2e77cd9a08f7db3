"""Fine-tuning: from a base model to one that answers, or that classifies."""
