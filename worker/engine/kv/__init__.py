"""Keys and values of running sequences: the budget, the allocator of places, and the memory."""
