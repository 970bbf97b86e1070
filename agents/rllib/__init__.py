"""RLlib training of language-model agents."""
