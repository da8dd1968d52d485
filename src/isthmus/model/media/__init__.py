"""Pictures and sounds: a projector makes embeddings of them, which sessions take for tokens."""
