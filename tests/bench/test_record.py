"""Results are kept after every run, and a report can be made of what was kept."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.bench.conftest import MakeSample
from tests.small_disk import fill_up, small_disk

from diptych.bench.measure import ratios_of
from diptych.bench.record import Recorder, Result, Sweep, TargetFacts, load, load_samples, new_result
from diptych.bench.report.figures import draw
from diptych.bench.report.page import write_page
from diptych.bench.report.words import goodput_rows, verdicts, warnings
from diptych.bench.search import Goodput
from diptych.bench.summary import summarize
from diptych.core.errors import BenchError, ConfigError
from diptych.core.slo import Slo

SLO = Slo(1.0, 0.05)


def start(folder: Path) -> Recorder:
    targets = [TargetFacts("ours", "diptych serve"), TargetFacts("<theirs>", "http://h:1")]
    return Recorder(folder, new_result("diptych bench compare", {"duration_s": 10.0}, "chat", [SLO], targets))


def fill(recorder: Recorder, make_sample: MakeSample) -> None:
    """Add a run of each server with each of three seeds, and what followed from them."""
    for seed in range(3):
        for name, rate in (("ours", 4.0), ("<theirs>", 2.0)):
            samples = [make_sample(planned_s=float(index), ttft_s=0.3 + 0.01 * index) for index in range(10)]
            samples.append(make_sample(planned_s=9.5, error="HTTP 429: busy", status=429, token_times_s=[]))
            recorder.add_run(name, seed, samples, summarize(samples, [SLO], rate, 10.0))
            goodputs = [Goodput(SLO, rate + seed / 10, rate, rate + 0.5)]
            recorder.result.sweeps.append(Sweep(name, seed, goodputs))
    recorder.result.ratios = ratios_of(recorder.result.sweeps, ["ours", "<theirs>"])
    recorder.save()


def test_what_was_kept_can_be_read_again(tmp_path: Path, make_sample: MakeSample) -> None:
    recorder = start(tmp_path / "new" / "folder")
    fill(recorder, make_sample)
    recorder.on_model("ours", "smol")
    recorder.save()
    result = load(tmp_path / "new" / "folder")
    assert result == recorder.result
    assert result.targets[0].model == "smol"
    samples = load_samples(tmp_path / "new" / "folder", 3)
    assert [sample.planned_s for sample in samples] == [*map(float, range(10)), 9.5]
    assert samples[2].ttft_s == pytest.approx(0.32)
    assert samples[2].tpot_s == pytest.approx(0.02, abs=1e-4)
    assert (samples[-1].status, samples[-1].error) == (429, "HTTP 429: busy")
    assert load_samples(tmp_path / "new" / "folder", 99) == []


def test_on_a_full_disk_what_was_kept_can_still_be_read(tmp_path: Path, make_sample: MakeSample) -> None:
    with small_disk(tmp_path / "disk", "size=128k") as disk:
        recorder = start(disk / "results")
        with pytest.raises(BenchError, match=r"^cannot write to .*/results: No space left on device; make room there"):
            for _ in range(1000):
                fill(recorder, make_sample)
        filler = fill_up(disk)
        with pytest.raises(BenchError, match="what was measured before is kept"):
            fill(recorder, make_sample)
        kept = load(disk / "results")
        assert kept.runs
        assert all(len(load_samples(disk / "results", run.number)) == 11 for run in kept.runs)
        assert {path.name for path in (disk / "results").iterdir()} == {"result.json", "samples.jsonl.gz"}
        filler.unlink()


def test_nothing_is_overwritten(tmp_path: Path, make_sample: MakeSample) -> None:
    fill(start(tmp_path), make_sample)
    with pytest.raises(ConfigError, match="holds a result already"):
        start(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        start(tmp_path / "file" / "below")


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_a_folder_without_a_result(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(BenchError, match="holds no result"):
        load(tmp_path)


def test_samples_that_were_cut_off(tmp_path: Path, make_sample: MakeSample) -> None:
    fill(start(tmp_path), make_sample)
    path = tmp_path / "samples.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BenchError, match="cannot be read"):
        load_samples(tmp_path, 0)


def result_of(folder: Path, make_sample: MakeSample) -> Result:
    recorder = start(folder)
    fill(recorder, make_sample)
    return recorder.result


def test_servers_are_compared_seed_by_seed(tmp_path: Path, make_sample: MakeSample) -> None:
    result = result_of(tmp_path, make_sample)
    (ratio,) = result.ratios
    assert (ratio.target, ratio.over, ratio.estimate.num_samples) == ("ours", "<theirs>", 3)
    assert ratio.estimate.median == pytest.approx(4.1 / 2.1)
    (sentence,) = verdicts(result)
    assert sentence.startswith("At TTFT 1 s, TPOT 50 ms, ours carries 1.95 times the load of <theirs> (range")
    rows = list(goodput_rows(result))
    assert [row[0] for row in rows] == ["ours", "<theirs>"]
    assert rows[0][2].startswith("4.1 requests/s (4 to 4.2)")
    assert rows[1][4] == ""


def test_a_server_without_goodput_is_compared_with_nobody(tmp_path: Path, make_sample: MakeSample) -> None:
    sweeps = [Sweep("a", 0, [Goodput(SLO, 2.0, 2.0, 3.0)]), Sweep("b", 0, [Goodput(SLO, 0.0, 0.0, 0.1)])]
    assert ratios_of(sweeps, ["a", "b"]) == []


class Text(HTMLParser):
    """Collects a page's text and images, and that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.images: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_needs_nothing_else(tmp_path: Path, make_sample: MakeSample) -> None:
    result = result_of(tmp_path, make_sample)
    figures = draw(result, tmp_path)
    assert [path.name for path in figures] == ["attainment.png", "latency.png"]
    page = Text()
    page.feed(write_page(result, tmp_path, figures).read_text())
    assert page.open == []
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert len(page.images) == 2
    for text in (
        "ours carries 1.95 times",
        "<theirs>",
        "Requests failed: HTTP 429: busy",
        "interrupted",
        "diptych serve",
    ):
        assert text in page.text


def test_a_report_without_slos_or_runs(tmp_path: Path) -> None:
    result = new_result("diptych bench run", {"duration_s": 10.0}, "chat", [], [])
    assert draw(result, tmp_path) == []
    assert write_page(result, tmp_path, []).exists()


def test_a_client_that_was_late_says_so(tmp_path: Path, make_sample: MakeSample) -> None:
    recorder = start(tmp_path)
    samples = [make_sample(planned_s=2.0, ttft_s=0.3, sent_s=2.2)]
    recorder.add_run("ours", 0, samples, summarize(samples, [SLO], 1.0, 10.0))
    assert any("sent its requests late" in text for text in warnings(recorder.result))
