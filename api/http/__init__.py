"""The HTTP layer: request headers, errors, middleware, Server-Sent Events. Nothing here depends on jobs."""
