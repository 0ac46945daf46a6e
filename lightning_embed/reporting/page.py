"""One page that tells the story of a run or of an offline pruning: a single file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_embed.errors import InputError
from lightning_embed.reporting.charts import charts
from lightning_embed.reporting.history import NAME, History, history_of, read_history
from lightning_embed.reporting.story import sections, shade, story
from lightning_embed.surgery import Result

if TYPE_CHECKING:
    import jinja2

HERE = Path(__file__).parent
_MISSING = "a report needs {}, which is not installed: pip install 'lightning-embed[report]'"


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
        ImportError: the extra `report` is not installed.
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
    """The page as text. Whatever comes from the run is escaped.

    Raises:
        ImportError: the extra `report` is not installed.
    """
    context = {**story(history), "charts": charts(history)}
    return _template().render(
        **context,
        sections=sections(context),
        marked=bool(history.merge_steps),
        shade=shade,
        css=_asset("page.css"),
        js=_asset("page.js"),
        plotly=_plotly() if context["charts"] else "",
    )


def _asset(name: str) -> str:
    """A file of this package that stands in the page as it is."""
    return _markup((HERE / name).read_text(encoding="utf-8"))


def _markup(text: str) -> str:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  # our own files and plotly's, nothing from a run


def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(_MISSING.format("jinja2")) from error
    loader = jinja2.FileSystemLoader(HERE)
    surroundings = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return surroundings.get_template("page.html.jinja")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(_MISSING.format("plotly")) from error
    return _markup(str(get_plotlyjs()))
