"""Multi-hop questions answered by searching a corpus."""
