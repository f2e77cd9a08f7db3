"""fledge: a language model's whole life, stage by stage."""
