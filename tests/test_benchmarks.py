"""The benchmarks run: every loop on every workload with narrow networks, and one table from end to end."""

import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import bench, peer
from benchmarks.loops import TRICKS, bare, textbook
from benchmarks.workloads import LOSSES, WORKLOADS, Workload, write_images

NARROW = {
    "toy": ("model.generator.hidden=[8]", "model.critic.hidden=[8]"),
    "s2_mlp": ("model.generator.hidden=[8]", "model.critic.hidden=[8]"),
    "s1_dcgan": ("model.generator.n_filters=8", "model.critic.n_filters=4", "batch_size=8"),
    "s3_upsample": ("model.generator.n_filters=8", "model.critic.n_filters=4", "batch_size=8"),
}


def narrow(name: str) -> Workload:
    """A workload with networks that take no time."""
    return dataclasses.replace(WORKLOADS[name], overrides=(*WORKLOADS[name].overrides, *NARROW[name]))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", WORKLOADS)
def test_loops_yield_the_images_of_a_generator_step(name: str, loss: str, images: Path) -> None:
    settings = narrow(name).config(loss, images)
    seen = settings.batch_size * settings.loss.n_critic
    for _ in range(2):  # the second finds the decoded images of the first
        assert next(textbook(settings, images)) == next(bare(settings)) == seen
    for trick in TRICKS if loss == "wgan_gp" else ():
        assert next(bare(settings, without=trick)) == seen


def test_bench_writes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "WORKLOADS", {"toy": narrow("toy")})
    quick = "--workloads toy --losses gan --seconds 2 --no-compile"
    monkeypatch.setattr(sys, "argv", ["bench", *quick.split()])
    bench.main()
    (row,) = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    turns = row["rates"]["wganlab"]
    assert len(turns) >= 1
    assert all(set(turn) == {"textbook", "bare", "wganlab"} for turn in turns)
    text = (tmp_path / "cpu.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1, "a ragged table"
    means = [sum(turn[name] for turn in turns) / len(turns) for name in ("textbook", "bare", "wganlab")]
    assert "| toy | gan | " + " | ".join(f"{value:,.0f}" for value in means) in text
    assert quick in text


PEER = """
import os, torchvision
assert os.path.exists("../../data/mnist/MNIST/raw/train-images-idx3-ubyte")
for step in range(100000):
    open("../../steps", "w").write(str(step))
    print("[Epoch 0/1] [Batch %d/937] [D loss: 1] [G loss: 2]" % step)
"""


def test_a_peer_goes_on_only_in_its_turn(tiny_mnist: Path, tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text(PEER.replace("../../steps", str(tmp_path / "steps")))
    with peer.running(script, tiny_mnist) as steps:
        assert next(steps) == 5 * 64
        time.sleep(0.1)
        before = (tmp_path / "steps").read_text()
        time.sleep(0.3)
        assert (tmp_path / "steps").read_text() == before
        next(steps)
    script.write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="has ended with code 3"), peer.running(script, tiny_mnist):
        pass
