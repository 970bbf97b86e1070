"""Turnwise: Gymnasium environments for LLM agents, and training that credits each turn."""

from turnwise import agents, envs, recipes, rewards, sandboxes

__all__ = ["agents", "envs", "recipes", "rewards", "sandboxes"]
__version__ = "0.1.0"
