"""The documentation is true: its Python runs, its links lead somewhere, and it lists every refusal and error."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import torch

from lightning_embed.graph.reasons import REASONS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_embed"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_PYTHON = [page for page in PAGES[1:] if "```python\n" in page.read_text(encoding="utf-8")]


def name_of(page):
    return str(page.relative_to(ROOT))


def text_of(page):
    return page.read_text(encoding="utf-8")


# Python


@pytest.fixture(autouse=True)
def one_thread():
    """The networks of the pages are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_python_of(page):
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, name_of(page), "exec"), names)
    return blocks


def test_the_readme_shows_a_measurement_and_writes_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(run_python_of(ROOT / "README.md")) >= 3
    assert "width/span" in capsys.readouterr().out
    assert (tmp_path / "merged.pt").exists()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_all_python_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python_of(page)


def test_the_pages_that_teach_have_python():
    expected = {"docs/index.md", "docs/quickstart.md", "docs/cookbook.md", "docs/troubleshooting.md"}
    assert expected <= {name_of(page) for page in WITH_PYTHON}


# links


def without_code(text):
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The anchors of a page's headings, as Python-Markdown makes them."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", one).strip().lower()) for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.is_file(), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_is_in_the_navigation():
    text = text_of(ROOT / "mkdocs.yml")
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in text, page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_says_to_run_exists(page):
    for module in re.findall(r"python -m ((?:benchmarks|docs|tests)[\w.]*\w)", text_of(page)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for script in re.findall(r"(?<!tests/)\bexamples/[\w/]+\.py", text_of(page)):
        assert (ROOT / script).is_file(), script


def test_every_picture_is_drawn_by_the_script_and_shown():
    drawn = re.findall(r'^    "([\w-]+)": \w+,$', text_of(ROOT / "docs/pictures.py"), re.MULTILINE)
    shown = {name for page in PAGES[1:] for name in re.findall(r"pictures/([\w-]+)\.svg\)", text_of(page))}
    assert set(drawn) == {path.stem for path in (ROOT / "docs/pictures").iterdir()} == shown


# troubleshooting


def section(title):
    """The text under a heading of the second level."""
    sections = re.split(r"^## (.*)\n", text_of(ROOT / "docs/troubleshooting.md"), flags=re.MULTILINE)
    return sections[sections.index(title) + 1]


def terms(text):
    """What a definition list explains: the quoted phrases that stand alone on lines before a definition."""
    found = []
    for group in re.findall(r"^((?:`[^`\n]+`\n)+):   \S", text, re.MULTILINE):
        found += re.findall(r"`([^`\n]+)`", group)
    assert len(found) == len(set(found))
    return found


def covers(phrase, message):
    """Whether a phrase, in which … stands for anything, occurs in a message."""
    return re.search(".*".join(map(re.escape, phrase.split("…"))), message, re.DOTALL) is not None


def written(node):
    """The text of a literal or f-string, … for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (written(node.left) or "…") + (written(node.right) or "…")
    return None


def called(node):
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def nodes(*names):
    """All nodes of the package's syntax trees, or of some of its files."""
    for path in [PACKAGE / name for name in names] or sorted(PACKAGE.rglob("*.py")):
        yield from ast.walk(ast.parse(text_of(path)))


def errors():
    """The messages of all errors that the package raises itself."""
    ours = {node.name for node in nodes() if isinstance(node, ast.ClassDef) and node.name.endswith("Error")}
    raised = [node.exc for node in nodes() if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    kinds = {*ours, "misconfiguration", "ImportError"}
    return [written(one.args[0]) for one in raised if called(one) in kinds]


def refusals():
    """Why a merge is undone: what the check returns, and the reasons that are written where a merge is given up."""
    (refusal,) = [one for one in nodes("surgery/decide/check.py") if getattr(one, "name", "") == "refusal"]
    found = [written(one.value) for one in ast.walk(refusal) if isinstance(one, ast.Return)]
    for node in nodes("surgery/decide/check.py", "surgery/decide/event.py", "surgery/decide/thresholds.py"):
        if isinstance(node, ast.Call) and called(node) == "Effect" and len(node.args) > 2:
            found.append(written(node.args[2]))
        if isinstance(node, ast.Call) and called(node) == "of":
            found += [written(one.value) for one in node.keywords if one.arg == "reason"]
        if isinstance(node, ast.Call) and called(node) == "refuse_step":
            found.append(written(node.args[1]))
    return [one for one in found if one]


def spoken():
    """What is logged or warned of."""
    calls = [node for node in nodes() if isinstance(node, ast.Call) and node.args]
    found = [written(one.args[0]) for one in calls if called(one) in {"warn", "warning", "info"}]
    return [one for one in found if one and len(one) > len("%s: %s")]


def test_every_reason_for_leaving_a_layer_alone_is_explained():
    assert terms(section("Why a layer is left alone")) == list(REASONS)


@pytest.mark.parametrize(
    ("title", "collect", "least"),
    [("Errors", errors, 150), ("Why a merge was undone", refusals, 7), ("Log lines and warnings", spoken, 6)],
)
def test_every_message_is_explained_and_no_other(title, collect, least):
    messages, known = collect(), terms(section(title))
    assert len(messages) >= least
    assert None not in messages, "a message that is no literal cannot be looked up"
    missing = [one for one in messages if not any(covers(phrase, one) for phrase in known)]
    assert not missing, f"docs/troubleshooting.md does not explain {missing}"
    own = {"is not finite in"} if title == "Why a merge was undone" else set()  # an error, quoted as the reason
    stale = [phrase for phrase in known if phrase not in own and not any(covers(phrase, one) for one in messages)]
    assert not stale, f"docs/troubleshooting.md explains what is not said any more: {stale}"


def test_a_phrase_is_no_catch_all():
    messages = errors()
    for phrase in terms(section("Errors")):
        assert sum(covers(phrase, one) for one in messages) <= 12, phrase


# API


@pytest.mark.parametrize("name", ["", ".callbacks", ".operators", ".statistics", ".analysis"])
def test_the_api_pages_show_every_public_name(name):
    public = set(importlib.import_module(f"lightning_embed{name}").__all__)
    page = text_of(ROOT / f"docs/api/{name.removeprefix('.') or 'index'}.md")
    shown = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    if f"::: lightning_embed{name}\n" in page:  # all that is no submodule of the same name
        folder = PACKAGE / name.removeprefix(".")
        shown |= public - {path.stem for path in folder.glob("*.py")}
    assert public <= shown
