"""Worlds: Gymnasium text environments. Importing this module registers every id."""
