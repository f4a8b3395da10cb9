"""The queue in Redis: one store for each side, the names of keys, and the Lua scripts."""
