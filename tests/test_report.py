"""The report: what it says of real runs, of damaged ones, and how it behaves in a real browser."""

import csv
import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import NARROW, TINY, begin, in_process, wganlab
from wganlab.callbacks.history import History
from wganlab.locks import locked
from wganlab.ranges import log_uniform, position
from wganlab.report import explore, figures
from wganlab.report.compare import arms, differing_keys, results
from wganlab.report.networks import samples_by_epoch
from wganlab.report.page import clipping_bound, data_uri, write_report
from wganlab.report.publish import export
from wganlab.report.tables import cell, columns_of, latex, latex_table, markdown_table, tables
from wganlab.report.watch import watch
from wganlab.runs import Run, Status, final_and_best, find_runs
from wganlab.schema import ConfigError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]


def make_run(folder: Path, config: dict, overrides: list[str], rows: str = "", state: str = "completed") -> Path:
    """A run folder as train leaves it, without the training."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    hydra = {"hydra": {"runtime": {"choices": {"loss": config.get("kind", "gan"), "hydra/launcher": "basic"}}}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps(hydra))
    (folder / "status.json").write_text(json.dumps({"state": state, "error": None}))
    if rows:
        (folder / "metrics.csv").write_text(rows)
    return folder


def test_results_csv_agrees_with_the_runs(sweep: Path) -> None:
    with open(sweep / "results.csv", newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["arm"] for record in records] == ["loss=gan", "loss=wgan_clip", "loss=wgan_gp"]
    for record in records:
        summary = json.loads((sweep / record["arm"] / "summary.json").read_text())
        assert (record["state"], record["steps"], record["seed"]) == ("completed", "12", "0")
        for key, value in summary["final"].items():
            if "/" in key:
                assert float(record[f"final/{key}"]) == pytest.approx(value)
        for key, value in summary["best"].items():
            assert float(record[f"best/{key}"]) == pytest.approx(value["value"])
            assert int(record[f"best_step/{key}"]) == value["step"]


def test_differing_keys_are_those_that_differ(sweep: Path) -> None:
    differing = differing_keys(find_runs([sweep]))
    assert differing["loss.n_critic"] == ["1", "5", "5"]
    assert differing["loss.regularizer.weight_clipping.bound"] == ["–", "0.01", "–"]
    assert differing["loss.optimizer.lr"] == ["0.0002", "5e-05", "0.0001"]
    assert not [key for key in differing if not key.startswith("loss.")]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([({"a": 1, "seed": 0}, ["a=1"]), ({"a": 2, "seed": 0}, ["a=2"])], ["a=1", "a=2"]),
        ([({"a": 1, "seed": 0}, ["seed=0"]), ({"a": 1, "seed": 1}, ["seed=1"])], ["gan", "gan"]),
        ([({"a": 1}, ["a=1", "b=1"]), ({"a": 2}, ["a=2", "b=1"])], ["a=1", "a=2"]),
        ([({"kind": "gan", "x": 1}, []), ({"kind": "wgan", "x": 2}, ["loss=wgan"])], ["loss=gan", "loss=wgan"]),
        ([({"x": {"y": 1}}, []), ({"x": {"y": 2}}, [])], ["x.y=1", "x.y=2"]),
        ([({"x": {"y": 1}}, ["x.y=1"]), ({"x": {"y": 2}}, [])], ["x.y=1", "x.y=2"]),
    ],
)
def test_arms_are_named_after_what_differs(runs: list, expected: list[str], tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(i), config, given) for i, (config, given) in enumerate(runs)]
    assert arms([Run(folder) for folder in folders]) == expected


def test_final_and_best() -> None:
    rows = [
        {"step": 1, "critic/loss": 3.0, "mine": 1.0},
        {"step": 2, "critic/loss": 1.0, "eval/emd": 5.0, "eval/precision": 0.9},
        {"step": 3, "critic/loss": 2.0, "eval/precision": 0.5, "mine": 2.0},
    ]
    outcome = final_and_best(rows)
    final = {"step": 3, "critic/loss": 2.0, "eval/emd": 5.0, "eval/precision": 0.5, "mine": 2.0}
    assert outcome["final"] == final
    best = {"critic/loss": 1.0, "eval/emd": 5.0, "eval/precision": 0.9}
    assert outcome["best"] == {key: {"value": value, "step": 2} for key, value in best.items()}


def test_every_column_is_drawn_and_layers_share_a_figure(tmp_path: Path) -> None:
    head = "step,images_seen,epoch,seconds,critic/loss,eval/fid,mine/speed of $x$,flat,a/layers/1,a/layers/2\n"
    runs = [
        Run(
            make_run(
                tmp_path / name, {"a": name}, [f"a={name}"], f"{head}1,2,3,4,1,9,{k},0,5,6\n2,4,6,8,2,8,2,0,7,{k}\n"
            )
        )
        for k, name in enumerate("xy", start=1)
    ]
    drawn = figures.curves(runs, arms(runs))
    assert list(drawn) == ["eval/fid", "critic/loss", "mine/speed of $x$", "a/layers"], "scores first, users' own last"
    lines = [np.asarray(line.get_ydata()).tolist() for line in drawn["a/layers"].axes[0].lines]
    assert lines == [[7, 1], [7, 2]]
    assert [tick.get_text() for tick in drawn["a/layers"].axes[0].get_xticklabels()] == ["1", "2"]
    write_report(runs, tmp_path)
    assert "mine/speed of $x$" in (tmp_path / "index.html").read_text()
    export(runs, tmp_path / "pieces")
    assert (tmp_path / "pieces" / "mine_speed_of__x_.svg").is_file()


def test_arms_whose_names_have_dollars_are_drawn(tmp_path: Path) -> None:
    """As overrides with two interpolations have, between which matplotlib would see a formula."""
    rows = "step,epoch,seconds,eval/fid\n10,{},1,3\n"
    for epoch, arm in enumerate(("lr=${a_b_c:1}, x=${b}", "y"), start=1):
        for seed in range(2):
            make_run(tmp_path / f"{epoch}{seed}", {"seed": seed}, [f"+arms={arm}"], rows.format(epoch))
    runs = find_runs([tmp_path])
    for drawn in (*figures.curves(runs, arms(runs)).values(), *figures.headlines(runs, arms(runs)).values()):
        assert "<svg" in figures.svg(drawn)


def test_a_mean_over_seeds_is_drawn_where_all_were_measured_at_the_same_steps(tmp_path: Path) -> None:
    """Three runs of two evaluations each, of which one ended sooner."""
    ends = {"x": 1000, "y": 1000, "z": 900}
    for seed, (name, last) in enumerate(ends.items()):
        rows = f"step,eval/fid\n500,9\n{last},{10 + 10 * seed}\n"
        make_run(tmp_path / name, {"seed": seed}, [f"seed={seed}"], rows)
    runs = find_runs([tmp_path])
    drawn = figures.curves(runs, arms(runs))["eval/fid"].axes[0]
    assert [np.asarray(line.get_ydata())[-1] for line in drawn.lines] == [10, 20, 30], "every run, and no mean"
    (tmp_path / "z" / "metrics.csv").write_text("step,eval/fid\n500,9\n1000,30\n")
    runs = find_runs([tmp_path])
    (mean,) = figures.curves(runs, arms(runs))["eval/fid"].axes[0].lines
    assert np.asarray(mean.get_ydata()).tolist() == [9, 20]


def test_a_tuned_clipping_bound_is_read_from_its_trial(tmp_path: Path) -> None:
    bound = "${log_uniform:1e-3,1e-1}"
    config = {"seed": 0, "trial": 3, "loss": {"regularizer": {"weight_clipping": {"bound": bound}}}}
    tuned = clipping_bound(Run(make_run(tmp_path / "tuned", config, [])))
    key = "loss.regularizer.weight_clipping.bound"
    assert tuned == pytest.approx(log_uniform(position(3, key), 1e-3, 1e-1), rel=1e-5)
    config = {"loss": {"regularizer": {"weight_clipping": {"bound": 0.01}}}}
    assert clipping_bound(Run(make_run(tmp_path / "given", config, []))) == 0.01
    assert clipping_bound(Run(make_run(tmp_path / "none", {"loss": {"regularizer": None}}, []))) is None


def test_best_values_are_tabulated_by_direction(tmp_path: Path) -> None:
    rows = "step,eval/modes,eval/fid,critic/loss,critic/penalty\n1,20,9,1,1\n2,25,5,2,1\n3,23,6,3,1\n"
    records = results([Run(make_run(tmp_path / "run", {}, [], rows))])
    shown = {column.heading: cell(records[0][column.key], column.format) for column in columns_of(records)}
    (table,) = tables(records)
    assert table.head == ["arm", "seed", "modes", "FID", "steps"], "headlines"
    assert (shown["modes"], shown["highest modes"], shown["modes last − best"]) == ("23", "25", "-2")
    assert (shown["FID"], shown["lowest FID"], shown["FID last − best"]) == ("6", "5", "1")
    assert (shown["critic loss"], shown["lowest critic loss"]) == ("3", "1")
    assert {"critic loss last − best", "Penalty of the critic loss"}.isdisjoint(shown)


@pytest.mark.parametrize("state", ["completed", "stopped", "failed"])
def test_the_state_of_a_run(state: str, tmp_path: Path) -> None:
    assert Run(make_run(tmp_path / "run", {}, [], state=state)).state == Status(state)


@pytest.mark.parametrize(
    ("content", "expected"), [('{"state": "running"}', "interrupted"), ('{"state": 5}', "unknown")]
)
def test_the_state_of_a_killed_run_and_of_a_damaged_one(content: str, expected: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {}, [])
    (run / "status.json").write_text(content)
    assert Run(run).state == Status(expected)


def test_one_reader_of_metrics(tmp_path: Path) -> None:
    """Reports leave out values that are not finite; a run that goes on keeps its rows as they were written."""
    text = "step,images_seen,critic/loss,mine\n1,64,0.50,\n2,128,nan,7\ntorn,1\n3,192,0.25,8\n"
    run = make_run(tmp_path / "run", {}, [], text)
    assert Run(run).rows == [
        {"step": 1, "images_seen": 64, "critic/loss": 0.5},
        {"step": 2, "images_seen": 128, "mine": 7.0},
        {"step": 3, "images_seen": 192, "critic/loss": 0.25, "mine": 8.0},
    ]
    history = History(every=1)
    kept = history.restore(run, 2)
    assert [row["critic/loss"] for row in kept] == ["0.50", "nan"]
    assert [row["step"] for row in history.rows] == [1, 2]
    assert history.columns[-1] == "mine"


def test_evaluations_are_read_and_damaged_ones_skipped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {}, [])
    (run / "evaluation").mkdir()
    record = {"step": 3, "protocol": {"id": "a"}, "scores": {"eval/emd": 1.0}}
    (run / "evaluation" / "last_a.json").write_text(json.dumps(record))
    for i, content in enumerate(DAMAGE):
        (run / "evaluation" / f"last_{i}.json").write_text(content)
    assert Run(run).evaluations == {"last_a.json": record}


def test_half_written_runs_are_shown_for_what_they_are(sweep: Path, tmp_path: Path) -> None:
    for name in ("loss=gan", "loss=wgan_gp", "loss=wgan_clip"):
        shutil.copytree(sweep / name, tmp_path / "runs" / name)
    gan, penalty = tmp_path / "runs" / "loss=gan", tmp_path / "runs" / "loss=wgan_gp"
    metrics = (gan / "metrics.csv").read_text()
    (gan / "metrics.csv").write_text(metrics[: metrics.rindex("12,") + 12])  # the last row is cut in two
    (gan / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
    shutil.rmtree(penalty / "samples")
    shutil.rmtree(penalty / "checkpoints")
    (penalty / "metrics.csv").unlink()
    (penalty / "status.json").write_text("{")
    write_report(find_runs([tmp_path / "runs"]), tmp_path / "report")
    text = html.unescape((tmp_path / "report" / "index.html").read_text())
    assert "checkpoints/last.ckpt cannot be read" in text
    assert "metrics.csv is missing" in text
    assert "status.json is damaged" in text
    assert "1 damaged rows skipped" in text
    with open(tmp_path / "report" / "results.csv", newline="") as file:
        records = {record["arm"]: record for record in csv.DictReader(file)}
    assert records["loss=gan"]["steps"] == "8"
    assert records["loss=wgan_gp"]["steps"] == ""
    assert records["loss=wgan_clip"]["steps"] == "12"


DAMAGE = ["", "[]", "5", "null", "{", "\x00", '{"loss": 3, "state": 5, "error": [1], "hydra": null}']
CSV = [
    "",
    "step\n",
    "a,b\n1,2\n",
    "step,critic/loss\n0,2\n",
    "step,critic/loss,epoch\ninf,2,3\n1,nan,3\n",
    "x" * 200_000,
]


@pytest.mark.parametrize("name", [".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "status.json"])
@pytest.mark.parametrize("content", DAMAGE, ids=repr)
def test_no_damaged_file_stops_the_report(name: str, content: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a": 1}, ["a=1"], "step,images_seen,epoch,seconds\n1,2,3,4\n")
    (run / name).write_text(content)
    write_report([Run(run), Run(make_run(tmp_path / "other", {"a": 2}, ["a=2"]))], tmp_path)


@pytest.mark.parametrize("content", CSV, ids=lambda text: repr(text[:30]))
def test_no_damaged_metrics_stop_the_report(content: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a": 1}, ["a=1"], content or "\n")
    (run / "samples").mkdir()
    (run / "samples" / "step_best.png").write_text("no picture")
    write_report([Run(run)], tmp_path)
    assert "is no grid of samples" in (tmp_path / "index.html").read_text()


def test_equal_seeds_are_not_called_seeds_and_loggers_are_no_difference(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep / "loss=gan", tmp_path / "a")
    shutil.copytree(sweep / "loss=gan", tmp_path / "b")
    overrides = tmp_path / "b" / ".hydra" / "overrides.yaml"
    overrides.write_text(overrides.read_text() + "- logger=csv\n")
    config = tmp_path / "b" / ".hydra" / "config.yaml"
    config.write_text(re.sub(r"logger:\n(  .*\n)+", "logger: {}\n", config.read_text()))
    runs = find_runs([tmp_path])
    assert arms(runs) == ["digits, mlp, gan"] * 2
    write_report(runs, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "mean of 2 runs" in text
    assert "mean of 2 seeds" not in text


def test_many_arms_stay_readable(tmp_path: Path) -> None:
    rows = "step,images_seen,epoch,seconds,critic/loss\n1,2,3,4,0.5\n2,4,6,8,0.25\n"
    runs = [Run(make_run(tmp_path / str(i), {"a": i}, [f"a={i}"], rows)) for i in range(12)]
    write_report(runs, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "<h1>12 arms" in text
    assert len(set(re.findall(r'class="swatch" style="background:(#\w+)"', text))) == 12


def test_several_seeds_and_mixed_paths(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "seed1"
    shutil.copytree(sweep / "loss=gan", other)
    config = (other / ".hydra" / "config.yaml").read_text()
    (other / ".hydra" / "config.yaml").write_text(config.replace("seed: 0", "seed: 1"))
    runs = find_runs([sweep, other, sweep / "loss=gan"])
    assert len(runs) == 4, "a run that is named twice counts once"
    assert arms(runs).count("loss=gan") == 2
    write_report(runs, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "mean of 2 seeds" in text
    assert "One seed per arm" not in text


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    run = make_run(tmp_path / "run", {"a": evil}, [f"a={evil}"], "step,images_seen,epoch,seconds\n1,2,3,4\n")
    other = make_run(tmp_path / "other", {"a": "b"}, ["a=b"])
    write_report([Run(run), Run(other)], tmp_path)
    assert evil not in (tmp_path / "index.html").read_text()


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        find_runs([tmp_path])
    with pytest.raises(ConfigError, match="does not exist"):
        find_runs([tmp_path / "nowhere"])


def test_export(sweep: Path, tmp_path: Path) -> None:
    done = wganlab("report", str(sweep), "--output", "page", "--export", "pieces", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page" / "index.html").is_file()
    table = (tmp_path / "pieces" / "table.md").read_text()
    assert table == markdown_table(results(find_runs([sweep])))
    assert [line.count("|") for line in table.splitlines()] == [table.splitlines()[0].count("|")] * 6
    assert (tmp_path / "pieces" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "pieces" / "eval_emd.svg").read_text().startswith("<svg")
    text = latex_table(results(find_runs([sweep])))
    assert (tmp_path / "pieces" / "table.tex").read_text() == text
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if not line.startswith("|---")]
    rows = [line.removesuffix(" \\\\").split(" & ") for line in text.splitlines() if " & " in line]
    assert [[latex(cell) for cell in row] for row in cells] == rows
    assert not list((tmp_path / "pieces").glob("epochs_*")), "no study has asked for samples at epochs"


def test_latex_escapes_what_it_would_take_for_commands(tmp_path: Path) -> None:
    runs = [Run(make_run(tmp_path / a, {"a": a}, [f"a={a}"], "step,eval/fid\n1,2\n")) for a in ("x_y|50%", "z")]
    assert "a=x\\_y|50\\% & " in latex_table(results(runs))
    assert "| a=x_y\\|50% | " in markdown_table(results(runs))


def test_publish_fills_pages(sweep: Path, tmp_path: Path) -> None:
    """As ``make readme`` does: the table goes into one page, the files beside another one that it links to."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "README.md").write_text("![curve](eval_emd.svg) [](table.md) [](../README.md)\n")
    (tmp_path / "README.md").write_text("<!-- table -->\n<!-- end of table -->\n![](demo/eval_emd.svg)\n")
    shutil.copytree(sweep / "loss=gan", tmp_path / "run")
    done = wganlab("report", "run", "--publish", "demo/README.md", "README.md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = markdown_table(results(find_runs([tmp_path / "run"])))
    assert (
        tmp_path / "README.md"
    ).read_text() == f"<!-- table -->\n{table}<!-- end of table -->\n![](demo/eval_emd.svg)\n"
    assert (tmp_path / "demo" / "table.md").read_text() == table
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"README.md", "eval_emd.svg", "table.md"}
    done = wganlab("report", "run", "--publish", "nowhere.md", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "wganlab: nowhere.md: no such page; give a file of Markdown\n")


def test_samples_at_epochs_are_those_of_images(sweep: Path, tmp_path: Path) -> None:
    """60 batches of digits are 2.14 epochs; samples after steps 6 and 12 are within a tenth of epochs 1 and 2."""
    (penalty,) = find_runs([sweep / "loss=wgan_gp"])
    drawn = samples_by_epoch(penalty, [1, 2, 4])
    assert drawn is not None
    assert [axes.get_ylabel() for axes in drawn.axes] == ["epoch 1", "epoch 2"]
    assert samples_by_epoch(find_runs([sweep / "loss=gan"])[0], [1, 2, 4]) is None, "it saw 0.43 epochs"
    points = Run(penalty.folder)
    points.__dict__["shape"] = (2,)
    assert samples_by_epoch(points, [1, 2]) is None


class References(HTMLParser):
    """Collects whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "data")]


def test_page_is_self_contained(sweep: Path) -> None:
    text = (sweep / "index.html").read_text()
    page = References()
    page.feed(text)
    assert len(page.found) > 3
    assert [url for url in page.found if not url.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\((?!#)", text)


def browse(page: Path, script: str, width: int, tmp_path: Path) -> dict:
    """Open a page from file:// in Chromium, run a script in it, and return the object that it evaluates to."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian's package chromium)")
    run = f"(async () => {{ {script} }})().then((seen) => {{ probe.textContent = JSON.stringify(seen); }})"
    probe = f"<pre id=probe></pre><script>{run}</script></body>"
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=10000", "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_page_in_a_browser(sweep: Path, tmp_path: Path) -> None:
    seen = browse(
        sweep / "index.html",
        """
        const folded = [...document.querySelectorAll("details")].filter((part) => !part.open).length;
        document.querySelectorAll("details").forEach((part) => { part.open = true; });
        const table = document.querySelector("table.results"), head = table.tHead.rows[0].cells[1];
        const column = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
        head.querySelector("button").click();
        const up = column();
        head.querySelector("button").click();
        const down = column(), order = head.getAttribute("aria-sort");
        const grids = () => [0, 1, 2].map((i) => document.getElementById("samples-" + i).src);
        const slider = document.getElementById("step"), last = grids();
        slider.value = 0;
        slider.dispatchEvent(new Event("input"));
        const first = grids(), shown = document.getElementById("shown").textContent;
        slider.value = slider.max;
        slider.dispatchEvent(new Event("input"));
        const seen = [...document.querySelectorAll("figure img")];
        const loaded = seen.every((image) => image.complete && image.naturalWidth > 50 && image.alt);
        seen[0].click();
        const zoom = document.getElementById("zoom"), opened = zoom.open && zoom.firstElementChild.src === seen[0].src;
        zoom.click();
        const back = grids(), box = document.getElementById("by-time");
        box.checked = true;
        box.dispatchEvent(new Event("change"));
        const timed = grids(), time = document.getElementById("shown").textContent;
        return {
          time, fastest: timed.findIndex((grid, i) => grid === last[i]),
          later: timed.some((grid, i) => grid !== first[i]), shown,
          equal: first[0] === first[1], moved: first[0] !== last[0],
          back: back[0] === last[0],
          rows: document.querySelectorAll("#results tbody tr").length,
          cells: [...document.querySelectorAll("#results td")].map((cell) => cell.textContent),
          figures: [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect().height),
          loaded, text: document.body.textContent, folded, up, down, order, opened, closed: !zoom.open,
        };
        """,
        1200,
        tmp_path,
    )
    assert seen["folded"] == 4, "all columns, and three kinds of figures"
    scores = sorted(map(float, seen["up"][:3]))
    assert [*map(float, seen["up"][:3])] == scores
    assert [*map(float, seen["down"][:3])] == scores[::-1]
    assert seen["up"][3] == seen["down"][3], "real samples stay below"
    assert seen["order"] == "descending"
    assert (seen["opened"], seen["closed"]) == (True, True)
    assert seen["shown"] == "0"
    assert seen["equal"], "the arms begin with the same weights, so with the same samples"
    assert seen["moved"]
    assert seen["back"]
    ended = [find_runs([sweep / f"loss={loss}"])[0].rows[-1]["seconds"] for loss in ("gan", "wgan_clip", "wgan_gp")]
    assert seen["time"] == f"{min(ended):.1f} s", "as far as the fastest run got"
    assert seen["fastest"] == ended.index(min(ended))
    assert seen["later"]
    assert seen["loaded"]
    assert seen["rows"] == 4, "three runs and what real samples score"
    assert "completed" in seen["cells"]
    assert len(seen["figures"]) == 11 + 3, "eleven learning curves and three histograms"
    page = (sweep / "index.html").read_text()
    assert page.count(data_uri(sweep / "loss=gan" / "samples" / "step_00000012.png")) == 1, "grids are most of a page"
    assert min(seen["figures"]) > 100
    assert "epochs: loss=wgan_clip; loss=wgan_gp" in seen["text"]


def sweep_of(folder: Path, settings: list[dict], scores: list[list[float]]) -> list[Run]:
    """Runs with these settings and seeds, as of a sweep; each had its FID at steps 10, 20, ... and of its scores."""
    for number, (config, values) in enumerate(zip(settings, scores, strict=True)):
        rows = "".join(f"{10 * (i + 1)},{i + 1}.5,{value}\n" for i, value in enumerate(values))
        overrides = [f"{key}={value}" for key, value in config.items()]
        make_run(folder / str(number), {"seed": 0} | config, overrides, f"step,seconds,eval/fid\n{rows}")
    return find_runs([folder])


#: Waits in a page until the curves are drawn.
DRAWN = 'while (!document.querySelector("#chart .legend")) await new Promise((done) => setTimeout(done, 50));'


def test_curves_can_be_explored(tmp_path: Path) -> None:
    """Arm a has three seeds, of mean 4 and 2, arm b one: a band and two lines; then every run."""
    settings = [{"lr": "a", "seed": seed} for seed in (0, 1, 2)] + [{"lr": "b", "seed": 0}]
    runs = sweep_of(tmp_path / "runs", settings, [[3, 1], [4, 2], [5, 3], [8, 9]])
    write_report(runs, tmp_path)
    seen = browse(
        tmp_path / "index.html",
        DRAWN
        + """
        const control = (name) => document.querySelector(`#explore [name=${name}]`);
        const set = (name, property, value) => {
          control(name)[property] = value;
          control(name).dispatchEvent(new Event("input", {bubbles: true}));
        };
        const lines = () => chart.data.map(({name, x, y, fill}) => ({name, x, y, fill: Boolean(fill)}));
        const still = getComputedStyle(document.querySelector("figure.replaced")).display;
        const means = lines(), names = [...chart.querySelectorAll(".legendtext")].map((text) => text.textContent);
        set("every", "checked", true);
        set("x", "value", "seconds");
        const runs = lines();
        set("smooth", "value", "0.5");
        const smoothed = lines();
        set("log", "checked", true);
        const {type: axis, title: {text: title}} = chart.layout.yaxis;
        return {means, names, runs, smoothed, axis, title, still};
        """,
        900,
        tmp_path,
    )
    band, mean, other = seen["means"]
    assert (band["fill"], mean["x"], mean["y"], other["y"]) == (True, [10, 20], [4, 2], [8, 9])
    half = 4.302653 / 3**0.5  # of the 95% interval of three values with standard deviation 1
    assert band["y"] == pytest.approx([4 - half, 2 - half, 2 + half, 4 + half], rel=1e-4)
    assert seen["names"] == ["lr=a", "lr=b"]
    assert [line["y"] for line in seen["runs"]] == [[3, 1], [4, 2], [5, 3], [8, 9]]
    assert all(line["x"] == [1.5, 2.5] for line in seen["runs"])
    assert seen["smoothed"][3]["y"] == pytest.approx([8, (0.25 * 8 + 0.5 * 9) / 0.75])
    assert (seen["axis"], seen["title"]) == ("log", "Fréchet distance of features (FID)")
    assert seen["still"] == "none", "the figure for print is not seen beside it"


def test_a_sweep_over_many_keys_has_parallel_coordinates(tmp_path: Path) -> None:
    settings = [{"lr": 10.0**-n, "n": n % 3, "norm": ["layer", "none"][n % 2], "trial": n} for n in range(8)]
    runs = sweep_of(tmp_path / "runs", settings, [[float(n)] for n in range(8)])
    write_report(runs, tmp_path)
    seen = browse(
        tmp_path / "index.html",
        DRAWN + "return sweep.data[0].dimensions.map(({label, values, ticktext}) => ({label, values, ticktext}));",
        900,
        tmp_path,
    )
    by_label = {dimension["label"]: dimension for dimension in seen}
    assert [*by_label] == ["log10 lr", "n", "norm", "FID"]
    assert by_label["log10 lr"]["values"] == pytest.approx([-n for n in range(8)])
    assert (by_label["norm"]["values"], by_label["norm"]["ticktext"]) == ([0, 1] * 4, ["layer", "none"])
    assert by_label["FID"]["values"] == [*range(8)]
    assert explore.parallel_coordinates(runs[:7], "eval/fid") is None, "too few runs"


def test_a_sweep_over_two_numbers_has_a_heat_map(tmp_path: Path) -> None:
    """Of a grid each cell is the mean over seeds; random settings are dots on logarithmic axes."""
    settings = [{"lr": lr, "n": n, "seed": seed} for lr in (1, 20) for n in (1, 5) for seed in (0, 1)]
    grid = sweep_of(tmp_path / "grid", settings, [[value] for value in (1.0, 3.0, 4.0, 4.0, 5.0, 7.0, 0.0, 16.0)])
    figure = figures.heat_map("eval/fid", grid)
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["2", "6", "4", "8"], "rows are n, columns lr"
    drawn = [{"lr": 10.0**n, "n": 3.0 + n} for n in range(5)]
    dots = figures.heat_map("eval/fid", sweep_of(tmp_path / "dots", drawn, [[float(n)] for n in range(5)]))
    assert dots is not None
    assert (dots.axes[0].get_xscale(), dots.axes[0].get_yscale()) == ("log", "linear")
    assert figures.heat_map("eval/fid", grid[:4]) is None, "one number varies"


@pytest.mark.parametrize("width", [360, 500, 1200])
def test_page_fits_its_window(width: int, sweep: Path, tmp_path: Path) -> None:
    seen = browse(
        sweep / "index.html",
        "return {page: document.documentElement.scrollWidth, window: document.documentElement.clientWidth}",
        width,
        tmp_path,
    )
    assert seen["page"] <= seen["window"]


def test_clipped_weights_pile_up_at_the_bound(run_of: Callable[[str], Path]) -> None:
    import torch

    from wganlab.report.networks import critic_weights

    weights = critic_weights(torch.load(run_of("wgan_clip") / "checkpoints" / "last.ckpt", weights_only=True))
    counts, _ = np.histogram(weights, bins=101)
    assert min(counts[0], counts[-1]) > 5 * np.median(counts)


def test_a_page_waits_for_a_last_job_that_has_no_rows_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two jobs of a sweep no run is being made, and a job that has begun has nothing to show at first."""
    monkeypatch.setattr("wganlab.report.watch.LOOK", 0.01)
    monkeypatch.setattr("wganlab.report.watch.PAGE", 0)
    sweep, rows = tmp_path / "sweep", "step,seconds,eval/fid\n10,1.5,3\n"
    make_run(sweep / "seed=0", {"seed": 0}, ["seed=0"], rows)
    (sweep / "sweep.json").write_text('{"seed=0": "0", "seed=1": "1"}')
    pages: list[tuple[int, bool]] = []
    under_way, at_work = ExitStack(), ExitStack()
    under_way.enter_context(locked(sweep))

    def write(runs: list[Run], going_on: bool) -> None:
        pages.append((len(runs), going_on))
        if len(pages) == 1:  # between two jobs
            at_work.enter_context(locked(make_run(sweep / "seed=1", {"seed": 1}, ["seed=1"], state="running")))
            under_way.close()  # a worker outlives its sweep
            threading.Timer(0.2, begin_rows).start()
        elif len(runs) == 2 and going_on:
            (sweep / "seed=1" / "status.json").write_text('{"state": "completed"}')

    def begin_rows() -> None:
        (sweep / "seed=1" / "metrics.csv").write_text(rows)

    watch([str(sweep)], write)
    at_work.close()
    assert pages == [(1, True), (2, True), (2, False)]


def test_a_page_of_runs_without_a_row_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wganlab.report.watch.LOOK", 0.01)
    starting = make_run(tmp_path / "run", {"seed": 0}, [], state="running")
    under_way = ExitStack()
    under_way.enter_context(locked(starting))

    def fail() -> None:
        (starting / "status.json").write_text('{"state": "failed"}')
        under_way.close()

    threading.Timer(0.3, fail).start()
    with pytest.raises(ConfigError, match="all runs have ended before their first row"):
        watch([str(tmp_path)], lambda runs, going_on: None)
    (starting / "status.json").unlink()
    with pytest.raises(ConfigError, match="all runs have ended before their first row"):
        watch([str(tmp_path)], lambda runs, going_on: None)
    assert capsys.readouterr().out == f"waiting for the first row of a run in {tmp_path}\n"


def test_a_page_follows_a_sweep_until_its_last_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wganlab.report.watch.PAGE", 0.1)
    monkeypatch.setattr("wganlab.report.watch.LOOK", 0.1)
    pages: list[tuple[int, bool]] = []

    def write(runs: list[Run], going_on: bool) -> None:
        write_report(runs, tmp_path / "page", going_on=going_on)
        text = (tmp_path / "page" / "index.html").read_text()
        assert ('http-equiv="refresh"' in text) == going_on
        pages.append((len(runs), going_on))

    sweep = begin("train", "-m", "seed=0,1", *TINY, *NARROW, "logger=csv", "hydra.sweep.dir=sweep", cwd=tmp_path)
    watch([str(tmp_path / "sweep")], write)
    assert sweep.wait() == 0
    assert pages[0] == (1, True), "before the second has begun"
    assert pages[-1] == (2, False)
    assert [going_on for _, going_on in pages].count(False) == 1
    done = in_process("report", "sweep", "--watch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first page, which follows the runs as they go on: file:///" in done.stdout
    assert "compared 2 runs: sweep/index.html" in done.stdout
