"""Worlds: Gymnasium text environments. Importing this module registers every id."""

from turnwise.envs import registry

registry.register()
