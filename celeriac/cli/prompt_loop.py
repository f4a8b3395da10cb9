"""`celeriac run --interactive`: one prompt after another, with the commands of the original guide."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from celeriac.cli.input import next_line
from celeriac.cli.output import print_text, warn
from celeriac.cli.printable import LINES, printable
from tasks.sampling_params import MAX_TEMPERATURE, MAX_TOKENS_LIMIT
from worker.local import LocalModelError

if TYPE_CHECKING:
    from tasks.sampling_params import SamplingParams
    from worker.local import LocalModel

HELP = """\
/temp VALUE   temperature, 0 to 2 (0: always the likeliest token)
/topk VALUE   sample only from this many likeliest tokens (/topk off: from all)
/tokens N     most tokens to generate
/quit         exit"""


class PromptLoop:
    """Reads prompts and commands until /quit or the end of the input."""

    def __init__(self, model: LocalModel, sampling: SamplingParams) -> None:
        self._model = model
        self._sampling = sampling

    def run(self) -> None:
        """Run the loop. Ctrl-C ends the current text; at the prompt it ends the loop."""
        click.echo(f"{self._model.card.name}: enter a prompt or a command.\n{HELP}")
        while (line := next_line("> ")) is not None:
            if line.startswith("/"):
                if not self._run_command(line.split()):
                    return
            elif line:
                self._generate(line)

    def _run_command(self, words: list[str]) -> bool:
        """Carry out a command. Returns False if the loop ends."""
        match words:
            case ["/quit"]:
                return False
            case ["/topk", "off"]:
                self._sampling = replace(self._sampling, top_k=None)
            case ["/temp" | "/topk" | "/tokens" as name, value]:
                self._set(name, value)
            case _:
                click.echo(HELP)
        return True

    def _set(self, name: str, value: str) -> None:
        try:
            match name:
                case "/temp" if 0.0 <= (temperature := float(value)) <= MAX_TEMPERATURE:
                    self._sampling = replace(self._sampling, temperature=temperature)
                case "/topk" if (top_k := int(value)) >= 1:
                    self._sampling = replace(self._sampling, top_k=top_k)
                case "/tokens" if 1 <= (max_tokens := int(value)) <= MAX_TOKENS_LIMIT:
                    self._sampling = replace(self._sampling, max_tokens=max_tokens)
                case _:
                    raise ValueError
        except ValueError:
            click.echo(f"{name} cannot be {value}.\n{HELP}")

    def _generate(self, prompt: str) -> None:
        try:
            ids, warnings = self._model.encode(prompt)
            warn(warnings)
            print_text(prompt)
            self._model.generate(ids, self._sampling, on_text=print_text)
        except LocalModelError as error:
            click.echo(f"Error: {printable(str(error), keep=LINES)}", nl=False)
        except KeyboardInterrupt:
            click.echo(" (interrupted)", nl=False)
        click.echo()
