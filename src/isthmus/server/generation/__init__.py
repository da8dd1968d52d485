"""What a request wants of a model, whichever API it came by, and the agents that answer it."""
