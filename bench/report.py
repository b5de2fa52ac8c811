"""README's tables, made of the files in bench/results: `python -m bench.report` writes them.

Each stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

import re
from pathlib import Path

import click

from bench.tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"

_MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end of table -->\n)", re.DOTALL)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail where README differs.")
@click.option(
    "--show", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="Write nothing; print the tables that the files of this folder give.",
)  # fmt: skip
def main(check: bool, show: Path | None) -> None:
    """Write README's tables anew from bench/results."""
    if show is not None:
        for name, text in tables(show).items():
            click.echo(f"\n{name}\n\n{text}", nl=False)
        return
    before = README.read_text(encoding="utf-8")
    after = rewrite(before, RESULTS)
    if check and after != before:
        raise click.ClickException(
            "README.md differs from bench/results: run python -m bench.report"
        )
    if not check:
        README.write_text(after, encoding="utf-8")


def tables(results: Path) -> dict[str, str]:
    """The tables whose files are in a folder of results, by name."""
    found = {}
    for name, made in TABLES.items():
        try:
            found[name] = made(results)
        except FileNotFoundError:
            continue
    return found


def rewrite(text: str, results: Path) -> str:
    """The text with every marked table made anew from a folder of results."""
    return _MARKED.sub(
        lambda found: found[1] + TABLES[found[2]](results) + found[4],
        text,
    )


def marked(text: str) -> list[str]:
    """Names of the marked tables, in order."""
    return [found[2] for found in _MARKED.finditer(text)]


if __name__ == "__main__":
    main()
