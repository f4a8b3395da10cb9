"""Request and response bodies as pydantic models, one module for each family of routes."""
