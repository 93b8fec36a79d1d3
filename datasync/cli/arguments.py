"""The positional arguments of the subcommands: a URL, which ``DATASYNC_URL`` can stand for, and what follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from datasync.cli.complete import complete_positional
from datasync.cli.targets import URL_VARIABLE, default_url, looks_like_url, refuse_as_key

#: What may be a URL itself, or is a file that must exist.
PLACES = (["other"], ["source"])

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def positionals(*names: str) -> Callable[[CommandT], CommandT]:
    """Declare the positional arguments ``URL``, ``KEY``, ``[VALUE]``, …; those in brackets are optional, at the end.

    A last one with dots, ``COMMAND...``, takes all that follow, at least one, as a tuple.

    The function receives each by its name in lower case; an optional one that is missing is None. With
    ``DATASYNC_URL`` set, a URL that comes first may be left out: a first argument that does not begin like a URL, or
    is needed for the others, is not one. Then it must not look like a URL with a slip either.
    """
    return click.argument(
        "positionals", nargs=-1, cls=_Positionals, names=names, expose_value=False, metavar=_shown(names)
    )


def _shown(names: tuple[str, ...]) -> str:
    return " ".join("[URL]" if name == "URL" else name for name in names)


class _Positionals(click.Argument):
    """All positional arguments of a command as one, so that the first may be left out."""

    def __init__(self, *args: Any, names: tuple[str, ...], **attributes: Any) -> None:
        super().__init__(*args, callback=self._take, shell_complete=self._complete, **attributes)
        self.wanted = [name.strip("[].").lower() for name in names]
        self.rest = names[-1].endswith("...")
        self.needed = sum(not name.startswith("[") for name in names)

    def _take(self, ctx: click.Context, _: click.Parameter, given: tuple[str, ...]) -> None:
        texts = list(given)
        url = default_url()
        if self.wanted[0] == "url" and url and (len(texts) < self.needed or not looks_like_url(texts[0])):
            if texts and not ctx.resilient_parsing and self.wanted[1:2] not in PLACES:
                refuse_as_key(texts[0])
            texts.insert(0, url)
        if len(texts) < self.needed and not ctx.resilient_parsing:
            missing = self.wanted[len(texts)].upper()
            hint = f" Give it, or set {URL_VARIABLE}." if missing == "URL" else ""
            if texts and self.wanted[0] == "url" and not looks_like_url(texts[0]):
                hint = f" Is the first argument a URL? {URL_VARIABLE} is not set."
            raise click.UsageError(f"Missing argument '{missing}'.{hint}", ctx)
        if self.rest and len(texts) >= len(self.wanted):
            texts[len(self.wanted) - 1 :] = [tuple(texts[len(self.wanted) - 1 :])]  # type: ignore[list-item]
        if len(texts) > len(self.wanted) and not ctx.resilient_parsing:
            # Without the texts: one may be a value.
            raise click.UsageError(f"Got {len(texts)} arguments, and takes at most {len(self.wanted)}.", ctx)
        texts += [None] * (len(self.wanted) - len(texts))  # type: ignore[list-item]
        ctx.params.update(zip(self.wanted, texts, strict=False))

    def _complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        given = [text for name in self.wanted if (text := ctx.params.get(name)) is not None]
        return complete_positional(self.wanted, given, incomplete)
