"""Ollama's API: chat and generate, and what its clients ask about models."""
