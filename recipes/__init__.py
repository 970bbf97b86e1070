"""Published systems as short recipes: data only, imports nothing."""
