"""Clients of Redis: their connections, and what their errors mean."""
