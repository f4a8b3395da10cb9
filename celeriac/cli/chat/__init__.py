"""Conversations with a chat model: one loop with its commands, and what answers it: a server or a local model."""
