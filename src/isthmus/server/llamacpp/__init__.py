"""The API of llama.cpp's server: tokens, templates, completions, gaps, and what it tells of itself;
and reranking, as it and others have it."""
