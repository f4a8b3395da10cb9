"""Reservations of KV memory as plain arithmetic: the engine admits by it, and its feeder may reserve by it first."""

from __future__ import annotations

#: Reservations are whole blocks of this many tokens, so that equal requests get extents of equal size.
BLOCK_TOKENS = 32


class KvBudget:
    """Counts the tokens that sequences have reserved. It is not thread-safe; whoever shares it brings a lock.

    Two budgets of the same capacity that saw the same reservations agree, wherever they live: the engine compacts its
    memory, so a reservation that fits by the sum always fits.
    """

    def __init__(self, capacity_tokens: int) -> None:
        """A capacity that is no multiple of the block loses the rest."""
        if capacity_tokens < BLOCK_TOKENS:
            raise ValueError(
                f"KV memory for {capacity_tokens} tokens is too little: at least {BLOCK_TOKENS} are needed"
            )
        self.capacity = capacity_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        self.reserved = 0

    @property
    def free(self) -> int:
        """Tokens that nobody has reserved."""
        return self.capacity - self.reserved

    @staticmethod
    def need(prompt_tokens: int, max_tokens: int) -> int:
        """Tokens to reserve for a sequence: all that it may ever hold, in whole blocks."""
        return -(-(prompt_tokens + max_tokens) // BLOCK_TOKENS) * BLOCK_TOKENS

    def try_reserve(self, tokens: int) -> bool:
        """Reserve `tokens` (as `need` told them) if they are free."""
        if tokens > self.free:
            return False
        self.reserved += tokens
        return True

    def release(self, tokens: int) -> None:
        """Give back what `try_reserve` granted. ValueError if that was less."""
        if tokens > self.reserved:
            raise ValueError(f"{tokens} tokens are given back but only {self.reserved} are reserved")
        self.reserved -= tokens
