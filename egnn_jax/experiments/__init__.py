"""Experiments: train tasks and models from YAML configs, and report the results."""
