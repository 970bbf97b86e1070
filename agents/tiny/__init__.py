"""The embedded model and the script that makes it."""
