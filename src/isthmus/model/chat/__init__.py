"""Conversations, and the chat templates by which models read them."""
