"""Experiments: YAML to tasks, models and trainings; tables and pictures of their results."""
