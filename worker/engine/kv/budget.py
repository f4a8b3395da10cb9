"""The KV budget: counts reserved KV memory in tokens. Plain arithmetic, for the engine and for the worker."""

from __future__ import annotations

#: Reservations are multiples of this many tokens, so that equal requests get extents of equal size.
BLOCK_TOKENS = 32


class KvBudget:
    """Counts the tokens of KV memory that sequences have reserved. Not thread-safe: use a lock to share it.

    Two budgets of the same capacity with the same reservations agree, in whatever process they are. The engine compacts
    its memory, so a reservation that fits the sum always fits.
    """

    def __init__(self, capacity_tokens: int) -> None:
        """The capacity is rounded down to whole blocks. Raises ValueError if it is less than one block."""
        if capacity_tokens < BLOCK_TOKENS:
            raise ValueError(
                f"KV memory for {capacity_tokens} tokens is too little: at least {BLOCK_TOKENS} are needed"
            )
        self.capacity = capacity_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        self.reserved = 0

    @property
    def free(self) -> int:
        """Tokens that are not reserved."""
        return self.capacity - self.reserved

    @staticmethod
    def need(prompt_tokens: int, max_tokens: int) -> int:
        """Tokens to reserve for a sequence: the most that it may ever hold, rounded up to whole blocks."""
        return -(-(prompt_tokens + max_tokens) // BLOCK_TOKENS) * BLOCK_TOKENS

    def try_reserve(self, tokens: int) -> bool:
        """Reserve `tokens`, a result of `need`, and return True; return False if they are not free."""
        if tokens > self.free:
            return False
        self.reserved += tokens
        return True

    def release(self, tokens: int) -> None:
        """Release tokens that `try_reserve` reserved. Raises ValueError if fewer are reserved."""
        if tokens > self.reserved:
            raise ValueError(f"cannot release {tokens} tokens: only {self.reserved} are reserved")
        self.reserved -= tokens
