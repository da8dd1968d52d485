"""Passes through a model: a chunk of one session, a batch of many, a whole text."""
