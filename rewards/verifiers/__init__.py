"""Verifiers: judges of a finished episode."""
