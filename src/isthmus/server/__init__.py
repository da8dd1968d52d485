"""HTTP: an OpenAI-compatible endpoint and an agents API over one runtime. See `app.create_app`."""
