"""Serving: one engine behind a TGI-style API, an OpenAI-style API, a terminal chat and a chat page."""
