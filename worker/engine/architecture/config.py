"""The shape of a model: the numbers of its meta file, its era, and what follows from both."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.architecture.era import Era

#: Upper limits. A larger value means a broken file.
LIMITS = {
    "sequence_len": 1 << 20,
    "vocab_size": 1 << 22,
    "rows": 1 << 22,
    "n_layer": 1 << 10,
    "n_head": 1 << 10,
    "n_kv_head": 1 << 10,
    "n_embd": 1 << 16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a model. The constructor raises ValueError if a value is wrong, and names it."""

    #: The context: the longest sequence, prompt and answer together, in tokens.
    sequence_len: int
    #: Number of ids, which are 0 to vocab_size - 1.
    vocab_size: int
    #: Rows of the embedding and of the head: `vocab_size`, or more if the trainer padded them.
    rows: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    era: Era
    #: That of the era, or the one that the operator set.
    softcap: float
    #: One letter for each layer; if there are more layers, the pattern repeats. `L` attends to all keys, `S` to a short
    #: window. The last layer is always `L`.
    window_pattern: str = "L"
    #: For each layer, how many keys a query attends to in addition to the one of its own position.
    windows: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{name} is {value!r}, which is not an integer between 1 and {limit}")
        if self.rows < self.vocab_size:
            raise ValueError(f"the embedding has {self.rows} rows, fewer than vocab_size {self.vocab_size}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} cannot be divided among n_head {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} cannot be divided among n_kv_head {self.n_kv_head}")
        if self.head_dim % 2:
            raise ValueError(
                f"a head has {self.head_dim} channels (n_embd / n_head); rotary positions need an even count"
            )
        widest = max(self.era.gate_width, self.era.smear_width)
        if self.n_embd < widest:
            raise ValueError(f"n_embd {self.n_embd} is less than the {widest} channels that the gates of its era read")
        if not 0 < self.softcap < float("inf"):
            raise ValueError(f"softcap is {self.softcap!r}, which is not a finite number above 0")
        if (
            not isinstance(self.window_pattern, str)
            or not self.window_pattern
            or set(self.window_pattern.upper()) - set("SL")
        ):
            raise ValueError(f"window_pattern is {self.window_pattern!r}; only the letters S and L are allowed")
        object.__setattr__(self, "windows", tuple(self._window(layer) for layer in range(self.n_layer)))

    @property
    def head_dim(self) -> int:
        """Number of channels of a head."""
        return self.n_embd // self.n_head

    @property
    def kv_dim(self) -> int:
        """Number of channels of the keys of a layer, and of its values."""
        return self.n_kv_head * self.head_dim

    def has_value_embedding(self, layer: int) -> bool:
        """Whether `layer` adds a value embedding: every second layer does, counted back from the last."""
        return self.era.gate_width > 0 and layer % 2 == (self.n_layer - 1) % 2

    def _window(self, layer: int) -> int:
        letter = self.window_pattern[layer % len(self.window_pattern)].upper()
        if letter == "L" or layer == self.n_layer - 1:
            return self.sequence_len
        return self.era.short_window(self.sequence_len)
