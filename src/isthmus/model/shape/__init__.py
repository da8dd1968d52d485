"""The shape of a model: its hyperparameters, and how they are read from a file's metadata."""
