"""What HTTP itself needs: request headers, errors, middleware, Server-Sent Events. Nothing here knows about jobs."""
