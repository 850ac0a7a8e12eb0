"""Restrain trains deep residual networks: one recipe from a laptop to 1,000 GPUs; nothing lost, nothing guessed."""

__version__ = "0.1.0"
