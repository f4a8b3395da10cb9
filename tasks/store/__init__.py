"""The queue in Redis: one store for each side, the names of keys, the Lua scripts and the connections."""
