"""API keys, and how much the owner of each may ask for."""
