"""OpenAI's Responses API: each stored response is a position of a durable agent."""
