"""The text of a sequence: its pieces, the text that is held back, and its end."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.detokenizer import Detokenizer


class Letters:
    """A decoder whose token ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def finish(self) -> str:
        return ""


def pieces_of(
    text: str, *, stop: Sequence[str] = (), stop_on_newline: bool = False, min_tokens: int = 0
) -> tuple[list[str], str]:
    detokenizer = Detokenizer(Letters(), stop=stop, stop_on_newline=stop_on_newline, min_tokens=min_tokens)
    pieces = [detokenizer.push(ord(char)) for char in text]
    return pieces, detokenizer.finish()


def test_without_a_stop_text_the_piece_of_a_token_is_its_text() -> None:
    assert pieces_of("579") == (["5", "7", "9"], "")


def test_a_stop_text_is_never_shown_and_neither_is_its_beginning() -> None:
    pieces, tail = pieces_of("12END34", stop=["END"])
    assert pieces == ["1", "2", "", "", "", "", ""]
    assert tail == ""


def test_text_that_only_begins_like_a_stop_text_is_shown_later() -> None:
    pieces, tail = pieces_of("1EN2", stop=["END"])
    assert pieces == ["1", "", "", "EN2"]
    assert tail == ""


def test_text_held_back_at_the_end_is_the_tail() -> None:
    pieces, tail = pieces_of("1EN", stop=["END"])
    assert (pieces, tail) == (["1", "", ""], "EN")


def test_the_first_of_several_stop_texts_ends_the_text() -> None:
    pieces, _ = pieces_of("abcd", stop=["d", "bc"])
    assert "".join(pieces) == "a"


def test_the_newline_that_ends_the_text_is_its_last_character() -> None:
    class Lines:
        def push(self, token_id: int) -> str:
            return "7\n\nmore"

        def finish(self) -> str:
            return ""

    detokenizer = Detokenizer(Lines(), stop_on_newline=True)
    assert detokenizer.push(0) == "7\n"
    assert detokenizer.ended


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    min_tokens=st.integers(0, 12),
)
def test_the_completion_is_the_text_before_the_first_stop_text(text: str, stops: list[str], min_tokens: int) -> None:
    pieces, tail = pieces_of(text, stop=stops, min_tokens=min_tokens)
    # A stop text ends the text as soon as it is complete, if there are enough tokens then. So the one that ends first
    # counts, and of several that end there the longest.
    prefixes = (text[:end] for end in range(max(min_tokens, 1), len(text) + 1))
    whole = next((p for p in prefixes if any(p.endswith(stop) for stop in stops)), None)
    expected = text if whole is None else whole[: -max(len(stop) for stop in stops if whole.endswith(stop))]
    assert "".join(pieces) + tail == expected


class Holding:
    """A decoder that returns the text of digits with the next letter, or at the end."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, token_id: int) -> str:
        self._held += chr(token_id)
        return "" if chr(token_id).isdigit() or token_id == ord("\n") else self.finish()

    def finish(self) -> str:
        text, self._held = self._held, ""
        return text


def ends_with(text: str, *, stop: Sequence[str] = (), stop_on_newline: bool = False, min_tokens: int = 0) -> str:
    detokenizer = Detokenizer(Holding(), stop=stop, stop_on_newline=stop_on_newline, min_tokens=min_tokens)
    return "".join([*(detokenizer.push(ord(char)) for char in text), "|", detokenizer.finish()])


def test_what_the_decoder_holds_back_is_the_tail_up_to_a_stop_text() -> None:
    assert ends_with("a12") == "a|12"
    # The engine ends the text with the token that completes a stop text.
    assert ends_with("a123", stop=["23", "3"]) == "a|1"
    assert ends_with("ab1", stop=["b1"]) == "a|"
    assert ends_with("ab1", stop=["b1"], min_tokens=4) == "a|b1"
    # One that came too early is a part of the text.
    assert ends_with("a11", stop=["1"], min_tokens=3) == "a|1"
    assert ends_with("a1\n", stop_on_newline=True) == "a|1\n"
    assert ends_with("a\n\n", stop_on_newline=True, min_tokens=3) == "a|\n\n"
    # One that was found before is not looked for again.
    assert ends_with("a1b2", stop=["1"]) == "a|"


def test_a_newline_before_the_least_number_of_tokens_does_not_end_the_text() -> None:
    assert pieces_of("1\n2\n3", stop_on_newline=True, min_tokens=3)[0] == ["1", "\n", "2", "\n", ""]


@given(text=st.text("ab", max_size=30), stop=st.text("ab", min_size=1, max_size=4), cut=st.integers(0, 30))
def test_pushing_the_tokens_of_an_earlier_attempt_restores_its_state(text: str, stop: str, cut: int) -> None:
    whole, tail = pieces_of(text, stop=[stop])
    resumed = Detokenizer(Letters(), stop=[stop])
    for char in text[:cut]:
        resumed.push(ord(char))
    rest = [resumed.push(ord(char)) for char in text[cut:]]
    assert (whole[cut:], tail) == (rest, resumed.finish())
