"""Requests before a route sees them: connections, who may ask, errors, events, the log."""
