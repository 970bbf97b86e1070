"""Rollouts: how episodes are sampled."""
