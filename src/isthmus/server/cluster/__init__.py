"""Requests that are answered by the server that owns their agent."""
