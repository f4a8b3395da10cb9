"""The class of all commands."""

from __future__ import annotations

from collections import Counter

import click


class Command(click.Command):
    """A command that refuses an option whose first value would be lost, because it is given twice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line. Raises UsageError."""
        try:
            _, _, order = self.make_parser(ctx).parse_args(args=[*args])
        except click.NoSuchOption as error:
            takes_prompt = any(isinstance(one, click.Argument) and one.name == "prompt" for one in self.params)
            if takes_prompt and not error.option_name.startswith("--"):
                message = (
                    f"{error.format_message()} Options go before --, and a prompt that begins with a dash after it."
                )
                raise click.UsageError(message, ctx) from error
            raise
        for parameter, count in Counter(order).items():
            loses = isinstance(parameter, click.Option) and not (parameter.multiple or parameter.is_flag)
            if loses and count > 1:
                raise click.UsageError(f"{parameter.opts[0]} is given {count} times, and can have one value.", ctx)
        return super().parse_args(ctx, args)
