"""One page that tells the story of a run or of an offline pruning: a single file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_embed.errors import InputError
from lightning_embed.reporting.charts import charts
from lightning_embed.reporting.history import NAME, History, history_of, read_history
from lightning_embed.reporting.story import sections, story
from lightning_embed.surgery import Result

if TYPE_CHECKING:
    import jinja2

HERE = Path(__file__).parent


def report(source: Result | Path | str, file: Path | str | None = None) -> Path:
    """Write one self-contained HTML page about an offline pruning or a training run.

    It shows what the network was and became, the curves with the merges on them, each merge with evidence and effect,
    what was refused and why, sizes and measured time before and after, how alike neurons are, whether both networks
    predict the same, and the environment. Nothing is loaded from elsewhere when it is opened.

    Args:
        source: what `prune` returned, or the log folder of a run with the callbacks (its `history.jsonl`), finished
            or not.
        file: where to write; report.html in the run's folder if None, and needed for a result.

    Returns:
        The file that was written.

    Raises:
        InputError: the folder holds no history, or a result comes without a file name.
    """
    if isinstance(source, Result):
        if file is None:
            raise InputError("report(result, file) needs the name of the file to write, such as 'report.html'.")
        history, target = history_of(source), Path(file)
    else:
        path = Path(source)
        history = read_history(path)
        target = Path(file) if file is not None else (path if path.is_dir() else path.parent) / "report.html"
        if target.name == NAME or target.is_dir():
            raise InputError(f"{target} cannot be the report: it is a folder or the history itself; name another file.")
    text = render(history)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def render(history: History) -> str:
    """The page as text. Whatever comes from the run is escaped."""
    context = {**story(history), "charts": charts(history)}
    return _template().render(
        **context,
        sections=sections(context),
        marked=bool(history.merge_steps),
        css=_asset("page.css"),
        js=_asset("page.js"),
        plotly=_asset("plotly-basic.min.js") if context["charts"] else "",
    )


def _asset(name: str) -> str:
    """A file of this package, which stands in the page as it is."""
    from markupsafe import Markup

    return Markup((HERE / name).read_text(encoding="utf-8"))  # noqa: S704  # nothing from a run


def _template() -> jinja2.Template:
    import jinja2

    loader = jinja2.FileSystemLoader(HERE)
    surroundings = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return surroundings.get_template("page.html.jinja")
