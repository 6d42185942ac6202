"""Tables are data: rows of a CSV file are read, learned, drawn and written under their names and in their units."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from sklearn.datasets import load_wine
from torch import Tensor

import wganlab
from tests.conftest import in_process
from wganlab.data.table import Table
from wganlab.sample import write_rows
from wganlab.schema import InvalidValueError

WINE = load_wine()
QUICK = ["model=toy_mlp", "batch_size=32", "steps=2", "logger=csv", "callbacks.samples.n=40"]


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    """178 wines: 13 measurements, and which of three cultivars they are."""
    with open(tmp_path / "wine.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*WINE.feature_names, "cultivar"])
        writer.writerows([*row, WINE.target_names[target]] for row, target in zip(WINE.data, WINE.target, strict=True))
    return tmp_path / "wine.csv"


def test_a_table_is_standardised_and_comes_back_in_its_units(wine: Path) -> None:
    table = Table(path=str(wine), label="cultivar")
    rows, labels = table.load(), table.labels()
    assert (table.shape, len(table), rows.dtype) == ((13,), 178, torch.float32)
    assert table.columns.names == tuple(WINE.feature_names)
    assert rows.numpy() == pytest.approx(scipy.stats.zscore(WINE.data), abs=1e-4)
    assert table.columns.in_units(rows).numpy() == pytest.approx(WINE.data, rel=1e-5)
    assert labels is not None
    assert labels.tolist() == WINE.target.tolist()
    plain = Table(path=str(wine), columns=["hue", "alcohol"], standardise=False)
    assert plain.load().numpy() == pytest.approx(WINE.data[:, [10, 0]], rel=1e-6)
    assert plain.labels() is None


def test_large_offsets_are_kept_and_numeric_classes_are_ordered_as_numbers(tmp_path: Path) -> None:
    lines = [f"{1_700_000_000 + 7 * i},{12345678.25 + i},{label}" for i, label in enumerate([10, 2, 1, 33])]
    (tmp_path / "t.csv").write_text("\n".join(["time,price,month", *lines]) + "\n")
    table = Table(path=str(tmp_path / "t.csv"), label="month")
    rows, labels = table.load(), table.labels()
    assert rows[:, 0].tolist() == pytest.approx(scipy.stats.zscore([0, 7, 14, 21]), abs=1e-6)
    assert table.columns.in_units(rows)[1].tolist() == pytest.approx([1_700_000_007, 12345679.25], abs=1e-3)
    assert labels is not None
    assert labels.tolist() == [2, 1, 0, 3]
    write_rows(rows, tmp_path, table.columns, begin=True)
    written = np.loadtxt(tmp_path / "table.csv", delimiter=",", skiprows=1)
    assert written[:, 0] == pytest.approx([1_700_000_000 + 7 * i for i in range(4)], abs=1e-3)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_separators_a_byte_order_mark_and_a_constant_column(delimiter: str, tmp_path: Path) -> None:
    text = "a|b\r\n1|5\r\n3|5\r\n\r\n".replace("|", delimiter)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = Table(path=str(tmp_path / "t.csv"))
    assert table.columns.names == ("a", "b")
    assert table.load().tolist() == [[-1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("", {}, "path=.*holds no rows"),
        ("a,b\n", {}, "path=.*holds no rows"),
        ("1,2\n3,4\n", {}, r"path=.*first line should name the columns, and holds numbers \(1, 2"),
        ("a,a\n1,2\n", {}, "path=.*two of its columns are named 'a'"),
        ("a,b\n1,2\n\n3\n", {}, "path=.*line 4 has 1 cells, the first has 2"),
        ("a,b\n\n1,2\n3,\n", {}, "path=.*column 'b', line 4 has ''"),
        ("a,b\n1,inf\n", {}, "path=.*column 'b', line 2 has 'inf'"),
        (",b\n0,2\n1,3\n", {}, "path=.*column 1 has no name; give it one, or leave it out by columns"),
        ("a\n1e39\n2\n", {"standardise": False}, "path=.*holds numbers that are too large for single precision"),
        ("a\n1e300\n-1e300\n", {}, "path=.*holds numbers that are too large for single precision"),
        ("a,b\n1,2\n", {"columns": ["a", "c"]}, "columns=c: no such column; .* has a, b"),
        ("a,b\n1,2\n", {"label": "c"}, "label=c: no such column; .* has a, b"),
        ("a,b\n1,2\n", {"columns": ["a", "a"]}, "columns=.*none twice"),
        ("a\n1\n", {"label": "a"}, "columns=.*at least one"),
    ],
)
def test_what_is_no_table_is_refused(text: str, options: dict, expected: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InvalidValueError, match=expected):
        Table(path=str(tmp_path / "t.csv"), **options)


def test_a_missing_table_is_refused_by_the_command(tmp_path: Path) -> None:
    done = in_process("train", "dataset=csv", "dataset.path=nowhere.csv", *QUICK, cwd=tmp_path)
    assert done.returncode == 2
    assert "dataset.path=nowhere.csv: cannot be read (No such file or directory)" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_a_table_is_learned_drawn_and_written(wine: Path, tmp_path: Path) -> None:
    run = wganlab.train(
        ["dataset=csv", f"dataset.path={wine}", "dataset.label=cultivar", *QUICK, f"hydra.run.dir={tmp_path / 'run'}"]
    )
    final = run.summary["final"]
    assert final["eval/w2"] >= final["eval/emd_raw"] > 0
    picture = Image.open(tmp_path / "run" / "samples" / "step_00000002.png").convert("RGB")
    colours = {colour for _, colour in picture.getcolors(1 << 20) or []}
    assert {(255, 178, 110), (128, 198, 128)} <= colours, "real and generated rows, orange and green, are drawn"
    wine.unlink()  # the columns are in the checkpoint
    done = in_process("sample", "run=run", "n=40", "output=made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "interpolation.png", "samples.png", "table.csv",
    ]  # fmt: skip
    with open(tmp_path / "made" / "table.csv", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == WINE.feature_names
    assert run.columns is not None
    expected = run.columns.in_units(run.sample(40)).numpy()
    assert expected == pytest.approx(run.sample(40).numpy() * WINE.data.std(0) + WINE.data.mean(0), rel=1e-4, abs=1e-4)
    assert np.array(rows, dtype=float) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_another_table_is_compared_in_the_units_of_the_one_that_was_learned(tmp_path: Path) -> None:
    """A generator of numbers about 0 is a thousand away from a table of numbers about 1,000, and not next to it."""
    numbers = np.random.default_rng(0).normal(size=(200, 2))
    for name, head, rows in (("a", "x,y", numbers), ("b", "x,y", numbers + 1000), ("c", "y,x", numbers)):
        np.savetxt(tmp_path / f"{name}.csv", rows, delimiter=",", header=head, comments="")
    run = wganlab.train(["dataset=csv", f"dataset.path={tmp_path}/a.csv", *QUICK, f"hydra.run.dir={tmp_path / 'run'}"])
    given = ["evaluate", f"run={run.folder}", "n=32", "extractor=none"]
    done = in_process(*given, f"dataset.path={tmp_path}/b.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(path.read_text()) for path in run.folder.glob("evaluation/*.json"))
    assert run.columns is not None
    away = (1000 / run.columns.scale).norm().item()
    assert record["scores"]["eval/emd_raw"] == pytest.approx(away, rel=0.01)
    done = in_process(*given, f"dataset.path={tmp_path}/c.csv", cwd=tmp_path)
    assert "dataset: its columns are y, x, and the generator makes x, y" in done.stderr
    done = in_process(*given, f"dataset.path={tmp_path}/b.csv", "split=training", cwd=tmp_path)
    assert "split=training: is of the run's own data, beside dataset.path; allowed is auto" in done.stderr


def test_a_table_that_has_changed_is_read_again_by_the_same_process(tmp_path: Path) -> None:
    path, known = tmp_path / "t.csv", []
    for power in (1, 3):
        path.write_text("\n".join(["a,b", *(f"{i},{i**power}" for i in range(40))]) + "\n")
        run = wganlab.train(["dataset=csv", f"dataset.path={path}", *QUICK, f"hydra.run.dir={tmp_path / str(power)}"])
        known.append(torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["fingerprint"])
    assert known[0] != known[1]


class Cloud:
    """Normal samples of ten values without names or classes: somebody's own data set."""

    shape = (10,)

    def __len__(self) -> int:
        return 100

    def load(self) -> Tensor:
        return torch.randn(100, 10, generator=torch.Generator().manual_seed(0))


def test_samples_of_one_axis_without_names_are_a_table_too(tmp_path: Path) -> None:
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "cloud.yaml").write_text("_target_: tests.test_tables.Cloud\n")
    wganlab.train(["dataset=cloud", *QUICK, f"hydra.run.dir={tmp_path / 'run'}"], config_dir=str(tmp_path / "conf"))
    done = in_process("sample", "run=run", "n=3", "output=made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "made" / "table.csv").read_text().splitlines()
    assert lines[0] == ",".join(f"column_{i}" for i in range(1, 11))
    assert [len(line.split(",")) for line in lines] == [10] * 4
