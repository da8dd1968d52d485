"""Durable agents: made, asked, forked, looked at, moved as files."""
