"""Anthropic's API: messages, over the same core as OpenAI's."""
