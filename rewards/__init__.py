"""What an episode was worth, and which turn earned it: pure functions over plain values."""
