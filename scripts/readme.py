"""Write the tables of models into both READMEs: ``python -m scripts.readme``.

A row is what the model's ``archive/<model>/card.yaml`` says; models that say the same share a row.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Literal

import tyro

from archive import catalog
from handlers import logs
from handlers.errors import UserError

Language = Literal["en", "zh"]

READMES: dict[str, Language] = {"README.md": "en", "README.zh-CN.md": "zh"}
HEADERS: dict[Language, Sequence[str]] = {
    "en": ("model", "learns", "trained by", "one row of `data`", "one prediction"),
    "zh": ("模型", "学什么", "训练脚本", "`data` 的一行", "一个预测"),
}
BEGIN = "<!-- models: `make readme` writes this table from archive/*/card.yaml -->\n"
END = "<!-- end of models -->\n"

logger = logging.getLogger(__name__)


def table(language: Language) -> str:
    """Return the table of models as Markdown.

    Raises:
        UserError: If a model's card cannot be used.
    """
    names_by_cells: dict[tuple[str, ...], list[str]] = {}
    for model in map(catalog.get, catalog.model_names()):
        script, *flags = model.training
        card = model.card
        cells = (
            getattr(card.learns, language),
            f"`{' '.join([f'training/{script}.py', *flags])}`",
            getattr(card.row, language),
            getattr(card.prediction, language),
        )
        names_by_cells.setdefault(cells, []).append(f"`{model.name}`")
    rows = [(", ".join(names), *cells) for cells, names in names_by_cells.items()]
    lines = [f"| {' | '.join(row)} |" for row in (HEADERS[language], *rows)]
    lines.insert(1, "|---" * len(HEADERS[language]) + "|")
    return "\n".join(lines) + "\n"


def with_table(text: str, language: Language) -> str:
    """Return a README's text with the current table between its markers.

    Raises:
        UserError: If the text has no markers, or a model's card cannot be used.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"expected the markers {BEGIN.strip()} and {END.strip()}, got none")
    return f"{before}{BEGIN}\n{table(language)}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    tyro.cli(lambda: None, args=argv, description="Write the tables of models into both READMEs.")
    logs.to_stderr(logging.WARNING)
    try:
        for name, language in READMES.items():
            path = catalog.ROOT / name
            path.write_text(with_table(path.read_text(encoding="utf-8"), language), "utf-8")
            print(path)
    except (UserError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
