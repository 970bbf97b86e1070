"""Who acts and who learns: engines, rollouts, RLlib training, the command line."""
