"""Questions with their answers: sums, letters in words, greetings, and questions that the model declines.

Small sums and products are answered from memory, all others with the calculator: the answer begins with an expression,
and the server inserts its value.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import words

#: Up to this number, the terms of a sum or difference are small.
LARGEST_SMALL = 99
#: Up to this number, the factors of a product are small.
LARGEST_FACTOR = 12
#: One exercise in so many never occurs in training.
HELD_OUT_SHARE = 20
#: The operators that the model answers from memory if the numbers are small.
MEMORY = "+*"

NAMES = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}

QUESTIONS = {
    "+": (
        *("What is {a} plus {b}?",) * 5,
        *("{a} + {b}", "{a}+{b}", "What is {a} + {b}?", "What is {a}+{b}?", "{a} plus {b}", "{a} plus {b}?"),
        *("{a}+{b}=", "{a} + {b} =", "{a} + {b} = ?", "{a}+{b}?", "Calculate {a} + {b}.", "Calculate {a} plus {b}."),
        *("How much is {a} plus {b}?", "How much is {a} + {b}?", "Can you add {a} and {b}?", "Can you add {b} to {a}?"),
        *("Add {a} and {b}.", "Please add {a} and {b}.", "Add {b} to {a}.", "What is the sum of {a} and {b}?"),
        *("Tell me {a} plus {b}.", "Can you tell me what {a} plus {b} is?", "What do you get if you add {a} and {b}?"),
        *("I have {a} {things} and get {b} more. How many do I have?", "What does {a} plus {b} make?"),
        *("There are {a} {things} here and {b} there. How many {things} are there?", "What are {a} and {b} together?"),
    ),
    "-": (
        *("What is {a} minus {b}?",) * 4,
        *("{a} - {b}", "{a}-{b}", "What is {a} - {b}?", "What is {a}-{b}?", "{a} minus {b}", "{a} minus {b}?"),
        *("{a}-{b}=", "{a} - {b} =", "{a} - {b} = ?", "{a}-{b}?", "Calculate {a} - {b}.", "Calculate {a} minus {b}."),
        *("How much is {a} minus {b}?", "How much is {a} - {b}?", "Can you subtract {b} from {a}?"),
        *("Subtract {b} from {a}.", "Please subtract {b} from {a}.", "Take {b} away from {a}."),
        *("Tell me {a} minus {b}.", "Can you tell me what {a} minus {b} is?", "What is left of {a} without {b}?"),
        *("I have {a} {things} and lose {b}. How many are left?", "What is {b} less than {a}?"),
    ),
    "*": (
        *("What is {a} times {b}?",) * 4,
        *("{a} * {b}", "{a}*{b}", "What is {a} * {b}?", "What is {a}*{b}?", "{a} times {b}", "{a} times {b}?"),
        *("{a}*{b}=", "{a} x {b}", "{a} x {b} = ?", "What is {a} x {b}?", "Calculate {a} * {b}."),
        *("How much is {a} times {b}?", "Can you multiply {a} by {b}?", "Multiply {a} by {b}."),
        *("Please multiply {a} and {b}.", "What is the product of {a} and {b}?"),
        "Can you tell me what {a} times {b} is?",
        "I have {a} boxes with {b} {things} each. How many {things} do I have?",
    ),
    "/": (
        *("What is {a} divided by {b}?",) * 3,
        *("{a} / {b}", "{a}/{b}", "What is {a} / {b}?", "What is {a}/{b}?", "{a} divided by {b}", "{a}/{b}="),
        *("How much is {a} divided by {b}?", "Can you divide {a} by {b}?", "Divide {a} by {b}.", "{a} : {b}"),
    ),
}

#: Questions that continue with the last result.
FOLLOW_UPS = {
    "+": (
        *("And plus {b}?", "Plus {b}?", "plus {b}", "+ {b}", "+{b}", "And {b} more?", "Now add {b}.", "Add {b}."),
        *("Add {b} to that.", "And if you add {b}?", "What if I add {b}?", "Can you add {b}?"),
        "What is that plus {b}?",
    ),
    "-": (
        *("And minus {b}?", "Minus {b}?", "minus {b}", "- {b}", "-{b}", "And {b} less?", "Now subtract {b}."),
        *("Subtract {b} from that.", "And if you take {b} away?", "Can you subtract {b}?", "What is that minus {b}?"),
    ),
    "*": (
        *("And times {b}?", "Times {b}?", "times {b}", "* {b}", "*{b}", "Now multiply by {b}."),
        *("Multiply that by {b}.", "Can you multiply that by {b}?", "What is that times {b}?"),
    ),
}

LETTER_QUESTIONS = (
    *("How many {c} are in {word}?", "How many {c}'s are in {word}?", "How many {c} are there in {word}?"),
    *("How many times is {c} in {word}?", "How many letters {c} are in {word}?", "Count the {c} in {word}."),
    *("How many times does {c} occur in {word}?", "How often is the letter {c} in the word {word}?"),
    *("How many times does the letter {c} appear in {word}?", "How many {c}s are in the word {word}?"),
    *("How many '{c}' are in '{word}'?", 'How many "{c}" are in "{word}"?', "Count the letter {c} in '{word}'."),
)

SMALL_TALK = {
    "Hello! What shall I calculate?": (
        *("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey!", "Hello there", "Good morning", "Good morning!"),
        "Good evening!",
        *("Hi there!", "Hello, calculator!"),
    ),
    "I am fine, thank you. What shall I calculate?": ("How are you?", "Hello, how are you?", "How do you do?"),
    "I am a small calculator, trained from scratch as an example.": (
        *("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you a human?"),
        *("Are you a robot?", "Who made you?", "Which model are you?", "Introduce yourself."),
    ),
    "I can add, subtract, multiply and divide numbers, and count letters in words.": (
        *("What can you do?", "Help", "Help!", "Can you help me?", "What do you know?", "How can you help me?"),
        *("What can I ask you?", "How does this work?"),
    ),
    "You are welcome.": (
        *("Thank you", "Thank you!", "Thanks", "Thanks!", "Thank you very much!", "Great, thank you!", "Well done!"),
        *("Very good.", "Great!", "Good job!"),
    ),
    "Goodbye!": ("Bye", "Bye!", "Goodbye", "Goodbye!", "Good night!", "See you later!"),
}

DECLINED = "I am sorry, I can only calculate and count letters."
WRITE_DIGITS = "Please write the numbers in digits."
NO_NUMBER = "Please give me two numbers."


@dataclass(frozen=True)
class Turn:
    """A question of the user and the answer of the model."""

    question: str
    answer: str
    #: For the calculator: an expression and its value. Empty if the model answers without it.
    call: str = ""
    output: str = ""
    #: The result as a text. Empty if the answer has none.
    result: str = ""
    #: The result, if a follow-up can continue with it.
    value: int | None = None


def is_held_out(operator: str, a: int, b: int) -> bool:
    """Whether an exercise never occurs in training. The order of the operands of + and * does not matter."""
    if operator in "+*":
        a, b = sorted((a, b))
    return zlib.crc32(f"{a}{operator}{b}".encode()) % HELD_OUT_SHARE == 0


def is_small(operator: str, a: int, b: int) -> bool:
    """Whether the numbers are small enough to answer from memory."""
    limit = {"+": LARGEST_SMALL, "-": LARGEST_SMALL, "*": LARGEST_FACTOR, "/": -1}[operator]
    return min(a, b) >= 0 and max(a, b) <= limit


def sum_turn(question: str, operator: str, a: int, b: int, *, tool: bool, point: bool = False) -> Turn:
    """The turn of `a operator b`, with the calculator or without. `point`: a quotient ends with ".0"."""
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if operator == "/" else 0}[operator]
    point = point and operator == "/"
    result = f"{value}.0" if point else str(value)
    answer = f"{a} {NAMES[operator]} {b} is {result}."
    if tool:
        return Turn(question, answer, f"{a}{operator}{b}", result, result, None if point else value)
    return Turn(question, answer, result=result, value=value)


def letter_turn(question: str, letter: str, word: str) -> Turn:
    count = word.count(letter)
    answer = f"The letter {letter} occurs {count} {'time' if count == 1 else 'times'} in {word}."
    return Turn(question, answer, f"'{word}'.count('{letter}')", str(count), str(count), count)


class Exercises:
    """Draws turns from a random generator."""

    def __init__(
        self, rng: random.Random, *, held_out: bool = False, plain: bool = False, memory: str = MEMORY
    ) -> None:
        """`held_out`: draw only exercises, words and topics that never occur in training, instead of only others.

        `plain`: every question has its most common form, "What is 1 plus 2?". `memory`: the operators that the model
        answers from memory if the numbers are small.
        """
        self._rng = rng
        self._held_out = held_out
        self._plain = plain
        self._memory = memory

    def turn(self, last: int | None, *, first: bool = True, always_tool: bool = False) -> Turn:
        """Draw a turn of any kind.

        `last`: the last result, if a follow-up can continue with it. `first`: no turn before this one had a result.
        `always_tool`: the system message demands the calculator.
        """
        draw = self._rng.random()
        if last is not None and draw < 0.45:
            return self.follow_up(last, always_tool=always_tool)
        draw = self._rng.random()
        if draw < 0.50:
            return self.small(self._rng.choice("+++++--*"), always_tool=always_tool)
        if draw < 0.80:
            return self.large(self._rng.choice("++++++---**/"))
        if draw < 0.86:
            return self.letters()
        if draw < 0.95:
            return self.declined()
        if draw < 0.985:
            return self.small_talk()
        if draw < 0.995 or not first:
            return self.number_words()
        return self.no_number()

    def small(self, operator: str, *, always_tool: bool = False) -> Turn:
        """A sum, difference or product of small numbers. Products are never held out: they are a table."""
        limit = LARGEST_FACTOR if operator == "*" else LARGEST_SMALL
        while True:
            a, b = self._rng.randint(0, limit), self._rng.randint(0, limit)
            if operator == "*" or is_held_out(operator, a, b) == self._held_out:
                tool = always_tool or self._needs_tool(operator, a, b)
                return sum_turn(self._question(QUESTIONS[operator], a, b), operator, a, b, tool=tool)

    def large(self, operator: str) -> Turn:
        """An exercise with numbers that are not small, or a quotient."""
        while True:
            a, b = self._large_pair(operator)
            if not is_small(operator, a, b) and is_held_out(operator, a, b) == self._held_out:
                question = self._question(QUESTIONS[operator], a, b)
                return sum_turn(question, operator, a, b, tool=True, point=self._rng.random() < 0.5)

    def follow_up(self, last: int, *, always_tool: bool = False) -> Turn:
        """An exercise that begins with the last result."""
        while True:
            operator = self._rng.choice("+++--*")
            b = self._number(self._rng.choice((1, 1, 2, 2, 2, 3, 4) if operator != "*" else (1, 1, 1, 2)))
            if (operator == "*" and is_small(operator, last, b)) or is_held_out(operator, last, b) == self._held_out:
                tool = always_tool or self._needs_tool(operator, last, b)
                return sum_turn(self._question(FOLLOW_UPS[operator], last, b), operator, last, b, tool=tool)

    def letters(self) -> Turn:
        word = self._rng.choice(words.HELD_OUT if self._held_out else words.COUNTED)
        letter = self._rng.choice(word if self._rng.random() < 0.8 else "abcdefghijklmnopqrstuvwxyz")
        template = self._rng.choice(LETTER_QUESTIONS)
        return letter_turn(self._varied(template.format(c=letter, word=word)), letter, word)

    def declined(self) -> Turn:
        topics = words.HELD_OUT_TOPICS if self._held_out else words.TOPICS
        template = self._rng.choice([q for q in words.TOPIC_QUESTIONS if "{}" in q or not self._held_out])
        picked = self._rng.sample(topics, 2)
        return Turn(self._varied(template.format(*picked, year=self._rng.randint(1000, 2030))), DECLINED)

    def small_talk(self) -> Turn:
        answer = self._rng.choice(list(SMALL_TALK))
        return Turn(self._varied(self._rng.choice(SMALL_TALK[answer])), answer)

    def number_words(self) -> Turn:
        operator = self._rng.choice("+-*/")
        a, b = self._spelled(), self._spelled()
        return Turn(self._question([q for q in QUESTIONS[operator] if "things" not in q], a, b), WRITE_DIGITS)

    def no_number(self) -> Turn:
        """A follow-up without anything before it."""
        template = self._rng.choice([q for q in FOLLOW_UPS[self._rng.choice("+-*")] if q.endswith("?")])
        return Turn(self._varied(template.format(b=self._number(self._rng.randint(1, 3)))), NO_NUMBER)

    def _needs_tool(self, operator: str, a: int, b: int) -> bool:
        return operator not in self._memory or not is_small(operator, a, b)

    def _number(self, digits: int) -> int:
        return self._rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)

    def _large_pair(self, operator: str) -> tuple[int, int]:
        if operator == "/":
            divisor = self._rng.randint(1, 9) if self._rng.random() < 0.4 else self._rng.randint(2, 99)
            return divisor * self._number(self._rng.randint(1, 3)), divisor
        longest = 4 if operator == "*" else 6
        a, b = self._number(self._rng.randint(1, longest)), self._number(self._rng.randint(1, longest))
        return (-a, b) if self._rng.random() < 0.05 else (a, b)

    def _spelled(self) -> str:
        if self._rng.random() < 0.5:
            return self._rng.choice(words.SMALL_NUMBERS)
        tens = self._rng.choice(words.TENS)
        return tens if self._rng.random() < 0.3 else f"{tens}-{self._rng.choice(words.SMALL_NUMBERS[1:10])}"

    def _question(self, templates: Sequence[str], a: object, b: object) -> str:
        if self._plain:
            return templates[0].format(a=a, b=b)
        template = self._rng.choice(templates)
        return self._varied(template.format(a=a, b=b, things=self._rng.choice(words.THINGS)))

    def _varied(self, question: str) -> str:
        """The question as some people type it: in lower case, without the last mark, after a greeting."""
        if self._rng.random() < 0.1:
            question = question.replace("What is", "What's", 1)
        if self._rng.random() < 0.2:
            question = question[0].lower() + question[1:]
        if self._rng.random() < 0.2 and len(question) > 1 and question[-1] in ".?!" and question[-2] not in "= ":
            question = question[:-1]
        if self._rng.random() < 0.05 and question[0].isupper():
            question = self._rng.choice(("Hello! ", "Hi, ", "Please: ", "OK. ", "And now: ")) + question
        return question
