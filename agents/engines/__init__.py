"""Engines: what turns token ids into sampled token ids and log-probabilities."""
