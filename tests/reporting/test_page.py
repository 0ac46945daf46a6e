"""The page tells what happened, is sound HTML, escapes everything, and opens anywhere without a network."""

import itertools
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import lightning_embed as le
from lightning_embed import tape
from lightning_embed.graph import observe
from lightning_embed.reporting.drawing import network, slices
from lightning_embed.reporting.history import NAME, History, HistoryFile, Moment, history_of, read_history
from lightning_embed.reporting.page import render
from lightning_embed.reporting.pixels import palette, picture
from lightning_embed.surgery import snapshot
from tests.reporting.browser import Visit, chromium
from tests.reporting.histories import NASTY, fitted, start, write_long

VOID = {"meta", "link", "br", "img", "hr", "rect", "line", "polygon"}


class Checked(HTMLParser):
    """Reads a page strictly: every element is closed, in order; what matters is kept."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data

    def all(self, tag):
        return [attrs for one, attrs in self.seen if one == tag]


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 8), nn.Hardtanh(-50, 50), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[10:], model[0].bias[10:] = model[0].weight[:10], model[0].bias[:10]
    data = torch.randn(600, 6, generator=torch.Generator().manual_seed(1))
    return le.prune(model, data, criteria=le.Criteria(linearization=0.999, condensation=0.999, span=None))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    fitted(folder, CSVLogger(folder, "", ""))
    return folder


def test_the_page_of_a_result_tells_everything(result, tmp_path):
    file = le.report(result, tmp_path / "made" / "report.html")
    page = Checked(file.read_text(encoding="utf-8"))
    old, new = result.size
    for number in (old.parameters, new.parameters, old.flops, new.flops, old.neurons, new.neurons):
        assert f"{number:,}" in page.text
    assert "time of 256 samples" in page.text
    for record in result.records:
        assert record.layer in page.text
        assert record.criterion in page.text
        assert f"{record.change:.4f}" in page.text
    assert "merged into 4" in page.text
    assert "−10 neurons" in page.text
    assert "is the model's output" in page.text
    assert f"{100 * result.records[-1].agreement:.2f} % of " in page.text
    assert torch.__version__.split("+")[0] in page.text
    assert len(page.all("img")) == 2
    assert len(page.all("svg")) == 2 * 4


def test_a_network_that_grew_is_said_to_have_grown(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(64, 3)
    moments = []
    for when, one in (("start", net), ("end", le.widen(net, {"0": 9}))):
        tapes = tape.record(one, [x])
        moments.append(Moment(when, None, None, snapshot(one, observe(one, tapes), tapes)))
    page = Checked(render(History(moments=tuple(moments)))).text.replace("\u00a0", " ")
    assert "Nothing was merged. The network grew: it has 56 parameters and began with 26, 115.4 % more." in page
    assert "as large as it was" not in page


def test_the_page_of_a_run_tells_everything(run):
    file = le.report(run)
    assert file == run / "report.html"
    page = Checked(file.read_text(encoding="utf-8"))
    found = read_history(run)
    for record in found.records:
        assert f"{record.width[0]} → {record.width[1]}" in page.text
    assert "Epoch 2, step 16" in page.text
    assert "linearization 0.9999" in page.text
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', file.read_text(encoding="utf-8"), re.DOTALL)[1])
    assert [one["unit"] for one in charts][:3] == ["minimal Pearson correlation", "loss", "L1 norm"]
    mpc = charts[0]
    assert mpc["threshold"] == 0.9999
    assert [one["name"] for one in mpc["traces"]] == ["net.0", "net.2"]
    assert mpc["traces"][0]["x"] == list(found.curves["mpc/net.0"].steps)
    assert [one["step"] for one in mpc["marks"]] == [16]
    assert "net.0: 12 → 6 (condensation)" in mpc["marks"][0]["text"]
    elsewhere = le.report(run / NAME, run / "other.html")
    assert elsewhere.read_text() == file.read_text()


def test_headings_pictures_and_tables_say_what_they_are(run, result):
    for text in (render(read_history(run)), render(history_of(result))):
        page = Checked(text)
        levels = [int(tag[1]) for tag, _ in page.seen if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert all(one.get("alt") for one in page.all("img"))
        assert all(one.get("scope") for one in page.all("th"))
        assert len(page.all("caption")) == len(page.all("table"))
        assert all(one.get("aria-hidden") == "true" for one in page.all("svg"))
        assert all(one.get("aria-label") for one in page.all("div") if one.get("class") == "chart")
        ids = [attrs["id"] for _, attrs in page.seen if "id" in attrs]
        assert len(ids) == len(set(ids))
        links = [one["href"][1:] for one in page.all("a")]
        assert links
        assert set(links) <= set(ids)
        assert page.all("html") == [{"lang": "en"}]


def nasty_history(path):
    file = HistoryFile(path)
    start(file, criteria={"linearization": 0.99, NASTY: NASTY})
    for step in range(3):
        file.add("sample", step=step, epoch=0, values={f"mpc/{NASTY}": 0.9 + step / 100, "loss": 1.0})
        file.add("epoch", step=step, epoch=step, values={f"neurons/{NASTY}": 3.0}, metrics={NASTY: 1.0})
    for done in (True, False):
        record = le.Record(
            "layer",
            NASTY,
            NASTY,
            done=done,
            reason="" if done else NASTY,
            evidence={NASTY: NASTY},
            change=0.01,
            width=(3, 0),
            epoch=1,
            step=1,
        )
        file.add("merge", step=1, epoch=1, record=record.to_dict())
    shape = {"name": NASTY, "kind": NASTY, "inputs": 3, "width": 3, "hidden": False, "consumers": [], "between": []}
    shot = {
        "size": {"parameters": 3, "hidden_layers": 1, "neurons": 3, "flops": 3},
        "layers": [{**shape, "reason": NASTY, "merge_neurons": "", "merge_layer": ""}],
        "latency": None,
        "samples": 1,
        "device": NASTY,
        "similarity": [{"layer": NASTY, "neurons": 1, "groups": [1], "absolute": False, "cosine": "ZA=="}],
    }
    for when in ("before", "after"):
        file.add("snapshot", step=1, epoch=1, when=when, snapshot=shot)
    file.add("end", step=3, epoch=3, status=NASTY)
    file.flush()
    return path


def test_whatever_a_run_holds_is_text_and_no_markup(tmp_path):
    history = read_history(nasty_history(tmp_path / NAME))
    assert not history.damaged
    text = render(history)
    assert NASTY not in text
    assert "onerror=alert(1)>" not in text.replace("&gt;", "")
    page = Checked(text)
    assert page.text.count(NASTY) >= 10
    assert [one for one in page.all("img") if "onerror" in one] == []
    assert len(page.all("script")) == 3  # the data, plotly and ours


def test_a_long_run_of_many_layers_is_thinned_and_keeps_its_dips(tmp_path):
    write_long(tmp_path / NAME, 2000, 50)
    text = render(read_history(tmp_path))
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.DOTALL)[1])
    assert len(charts[0]["traces"]) == 50
    assert 0.123 in charts[0]["traces"][0]["y"]
    points = sum(len(trace["x"]) for trace in charts[0]["traces"])
    assert points <= 21_000
    assert len(text) < 4e6


def test_a_page_can_be_made_before_anything_was_measured(tmp_path):
    file = HistoryFile(tmp_path / NAME)
    start(file)
    file.flush()
    page = Checked(render(read_history(tmp_path)))
    assert "Nothing was merged" in page.text
    assert "running or cut off" in page.text


def test_bad_arguments_are_refused(result, tmp_path):
    with pytest.raises(le.InputError, match="name of the file"):
        le.report(result)
    with pytest.raises(le.InputError, match="history"):
        le.report(tmp_path)
    start_file = HistoryFile(tmp_path / NAME)
    start(start_file)
    start_file.flush()
    for target in (tmp_path, tmp_path / NAME):
        with pytest.raises(le.InputError, match="cannot be the report"):
            le.report(tmp_path, target)
    assert (tmp_path / NAME).read_text().startswith('{"event":"start"')


def test_the_drawing_shows_what_goes_and_what_stays(result):
    rows = network(history_of(result))
    assert [(one.name, one.was, one.became) for one in rows] == [
        ("input", 6, 6),
        ("0", 20, 10),
        ("2", 8, None),
        ("4", 4, 4),
    ]
    assert rows[1].left.node == (0.0, 100.0)
    assert rows[1].right.node == (25.0, 50.0)
    assert rows[2].right.node is None
    assert rows[2].right.flow


def test_the_flow_between_bars_is_straight():
    first, gone, last = slices([100, None, 50], [True, False, False], 100)
    corners = [tuple(map(float, pair.split(","))) for one in (first, gone, last) for pair in one.flow.split()]
    right = [(x, y) for x, y in corners if x > 50]
    assert len(right) == 6
    widths = {(round(2 * (x - 50), 2)) for x, _ in right}
    assert max(widths) == 100.0
    assert min(widths) == 50.0
    assert slices([3, 4], [False, False], 4)[0].flow == ""


def test_a_picture_is_a_png_of_the_matrix():
    import base64
    import io

    from PIL import Image

    matrix = torch.tensor([[100, -100], [0, 37]], dtype=torch.int8)
    image = Image.open(io.BytesIO(base64.b64decode(picture(matrix).partition(",")[2]))).convert("RGB")
    expected = [palette((value + 100) / 200) for value in matrix.flatten().tolist()]
    assert [image.getpixel((k % 2, k // 2)) for k in range(4)] == expected
    greys = [sum(w * c for w, c in zip((0.299, 0.587, 0.114), palette(k / 200), strict=True)) for k in range(201)]
    assert all(b >= a - 0.75 for a, b in itertools.pairwise(greys))  # read in grey it only grows lighter


# in a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_opens_without_errors_requests_or_sideways_scrolling(run, result, tmp_path, width, scheme):
    with chromium() as browser:
        for file in (le.report(run), le.report(result, tmp_path / "result.html")):
            visit = Visit(browser, file.as_uri(), width, scheme)
            visit.scroll()
            assert visit.said == []
            assert visit.abroad == []
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
            charts = visit.page.locator(".chart").count()
            assert visit.page.locator(".chart .main-svg").count() >= charts
            ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 380) == (scheme == "dark")
            for one in visit.page.locator("img").all():
                assert one.evaluate("one => one.complete && one.naturalWidth > 0")


def test_nasty_names_do_nothing_in_a_browser(tmp_path):
    nasty_history(tmp_path / NAME)
    file = le.report(tmp_path)
    with chromium() as browser:
        visit = Visit(browser, file.as_uri())
        visit.page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        visit.scroll()
        assert visit.said == []
        assert visit.abroad == []
        assert visit.page.locator("img[onerror]").count() == 0
        assert "onerror=alert(1)" in visit.page.locator(".chart text.ytitle").last.inner_html().replace("&gt;", ">")


def test_a_long_run_opens_soon_and_prints(tmp_path):
    write_long(tmp_path / NAME, 3000, 50)
    file = le.report(tmp_path)
    assert file.stat().st_size < 10e6
    with chromium() as browser:
        visit = Visit(browser, file.as_uri())
        visit.scroll()
        assert visit.said == []
        pages = visit.page.pdf(print_background=True)
        assert pages[:4] == b"%PDF"
