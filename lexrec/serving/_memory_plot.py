"""Pictures of a key-value memory analysis: one for each quantity, layers to the right, a line an expert."""

from pathlib import Path
from typing import Any

from lexrec.errors import ConfigError

_TITLES = {
    "affinity": "Affinity: above 0 nearer to items, below to text",
    "purity": "Purity: largest share of one category among the nearest items",
    "clustered": "Share of neurons with purity of at least {tau:g}",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which the colour-blind tell apart."""
_STYLES = ("-", "--", ":", "-.")
"""Of the first run, the second ..."""


def require_matplotlib() -> None:
    """Raises ConfigError where pictures cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "pictures are drawn by matplotlib, which is missing; pip install 'lexrec[report]'"
        ) from error


def draw(facts: dict[str, Any], folder: Path) -> list[Path]:
    """Draw each quantity that is known into FOLDER/QUANTITY.png."""
    drawn = []
    for quantity, title in _TITLES.items():
        runs = [run for run in facts["runs"] if run["random"][quantity] is not None]
        if runs:
            drawn.append(folder / f"{quantity}.png")
            _draw_one(runs, quantity, title.format(**facts), drawn[-1])
    return drawn


def _draw_one(runs: list[dict[str, Any]], quantity: str, title: str, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    experts = list(dict.fromkeys(entry["expert"] for run in runs for entry in run["layers"]))
    for number, run in enumerate(runs):
        style = _STYLES[number % len(_STYLES)]
        for expert in dict.fromkeys(entry["expert"] for entry in run["layers"]):
            entries = [entry for entry in run["layers"] if entry["expert"] == expert]
            colour = _COLOURS[experts.index(expert) % len(_COLOURS)]
            x = [entry["layer"] for entry in entries]
            label = f"{_short(run, runs)}: {_said(expert)}"
            axes.plot(x, _middle(entries, quantity), style, marker="o", ms=4, color=colour, label=label)
            if quantity != "clustered":
                low, high = ([entry[quantity][end] for entry in entries] for end in ("p25", "p75"))
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        (level,) = _middle([run["random"]], quantity)
        axes.axhline(
            level, color="#777777", linestyle=style, lw=1, label=f"{_short(run, runs)}: random directions"
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("layer")
    axes.set_ylabel("share of neurons" if quantity == "clustered" else "mean, and the middle half of neurons")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _middle(entries: list[dict[str, Any]], quantity: str) -> list[float]:
    return [entry[quantity] if quantity == "clustered" else entry[quantity]["mean"] for entry in entries]


def _said(expert: str) -> str:
    return "all tokens" if expert == "all" else f"{expert} expert"


def _short(run: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """The run's folder, or all of its path where another's is called alike."""
    short = Path(run["run"]).name
    return run["run"] if sum(Path(other["run"]).name == short for other in runs) > 1 else short
