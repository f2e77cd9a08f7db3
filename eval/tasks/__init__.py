"""What is measured: one module for each kind of task, one YAML file for each task; both are found by name."""
