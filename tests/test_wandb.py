"""The offline W&B run, read back with W&B's own reader."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.wandb_agent import Agent

from tests.conftest import NARROW, TINY, begin, wait_for, wganlab, without_account
from tests.test_claims import CLAIM, A, B
from tests.test_claims import runs as synthetic_runs
from wganlab import loggers
from wganlab.report.claims import read_claims
from wganlab.report.measured import Measured
from wganlab.report.studies import log_verdicts
from wganlab.report.verdicts import decide
from wganlab.runs import Run, find_runs

SWEEP = Path(__file__).parents[1] / "experiments" / "wandb_sweep.yaml"


def inspect(run: Path, *flags: str) -> str:
    """What W&B's reader says of the only offline run in a run folder, or of the folder of one."""
    (folder,) = run.glob("wandb/offline-run-*") if (run / "wandb").is_dir() else [run]
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def history(run: Path) -> list[dict]:
    """Records of the run's history, media and metrics of one step together."""
    records = [json.loads(line) for line in inspect(run).splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [
        {
            key: json.loads(value) if isinstance(value, str) and value[:1] in '{["' else value
            for key, value in item.items()
        }
        for item in items
    ]


def begun(run: Path) -> dict:
    """How the only offline run in a run folder was begun: name, group, tags and the like."""
    return next(json.loads(line)["run"] for line in inspect(run).splitlines() if json.loads(line)["type"] == "run")


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("loss", ["gan", "wgan_clip", "wgan_gp"])
def test_history_equals_metrics_csv(loss: str, run_of: Callable[[str], Path]) -> None:
    run = run_of(loss)
    logged = {item["_step"]: item for item in history(run)}
    assert sorted(logged) == [0, 4, 6, 8, 12], "W&B's step is the generator step"
    for row in rows(run):
        item = logged[int(row["step"])]
        for key, value in row.items():
            if key != "step" and value != "":
                assert item[key] == pytest.approx(float(value), rel=1e-9), key


def test_history_has_grids_and_histograms(run_of: Callable[[str], Path]) -> None:
    run = run_of("wgan_clip")
    logged = {item["_step"]: item for item in history(run)}
    (files,) = run.glob("wandb/offline-run-*/files")
    grids = {step: item["samples.filenames"] for step, item in logged.items() if "samples.filenames" in item}
    assert list(grids) == [0, 6, 12]
    for step, (name,) in grids.items():
        assert (files / name).read_bytes() == (run / "samples" / f"step_{step:08d}.png").read_bytes()
    weights = "critic/weights/features/1/weight."
    assert [step for step, item in logged.items() if weights + "values" in item] == [6, 12]
    assert sum(logged[12][weights + "values"]) == 784 * 64
    assert max(map(abs, logged[12][weights + "bins"])) == pytest.approx(0.01)


def test_a_table_shows_grids_beside_their_scores(run_of: Callable[[str], Path]) -> None:
    run = run_of("wgan_clip")
    table = loggers.samples_table(run)
    assert table is not None
    by_step = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.data}
    assert list(by_step) == [0, 6, 12]
    scores = {int(row["step"]): float(row["eval/emd"]) for row in rows(run) if row["eval/emd"]}
    assert by_step[0]["eval/emd"] is None
    for step in (6, 12):
        assert by_step[step]["eval/emd"] == pytest.approx(scores[step])
        assert by_step[step]["samples"]._path == str(run / "samples" / f"step_{step:08d}.png")


@pytest.mark.parametrize("loss", ["gan", "wgan_clip", "wgan_gp"])
def test_each_job_is_a_run_of_its_own(loss: str, run_of: Callable[[str], Path]) -> None:
    run = run_of(loss)
    about = begun(run)
    assert about["run_group"] == "out"
    assert about["display_name"] == f"loss={loss}"
    assert about["tags"] == ["digits", "mlp", loss]
    summary = json.loads(inspect(run, "--summary"))
    assert summary["state"] == "finished"
    assert (
        summary["config"]["loss"]["optimizer"]["critic"]["lr"]
        == {"gan": 2e-4, "wgan_clip": 5e-5, "wgan_gp": 1e-4}[loss]
    )
    assert summary["summary"]["steps"] == 12
    assert summary["summary"]["best"]["eval/emd"]["value"] > 0


def test_runs_have_different_ids(sweep: Path) -> None:
    assert len({path.name.rpartition("-")[2] for path in sweep.glob("*/wandb/offline-run-*")}) == 3


def test_a_killed_run_keeps_its_history(tmp_path: Path) -> None:
    small = ["dataset=gaussians8", "model=toy_mlp", "model.generator.hidden=[16]", "model.critic.hidden=[16]"]
    endless = ["steps=1000000", "compile=off", "log_every=5", "callbacks=none", "hydra.run.dir=run"]
    process = begin("train", *small, *endless, cwd=tmp_path)
    run = tmp_path / "run"
    wait_for(lambda: (run / "metrics.csv").exists() and len(rows(run)) > 20, "20 rows")
    process.kill()
    process.communicate()
    time.sleep(1)
    written = [int(row["step"]) for row in rows(run)]
    kept = [item["_step"] for item in history(run) if "critic/loss" in item]
    # what was logged within the flush interval of 0.2 s before the kill may be missing, nothing older
    seconds = {int(row["step"]): float(row["seconds"]) for row in rows(run)}
    lost = [step for step in written if step not in kept]
    assert len(written) > 20
    assert all(seconds[step] > seconds[written[-1]] - 0.5 for step in lost), (kept, written)
    assert json.loads((run / "status.json").read_text())["state"] == "running"


def test_a_continued_run_has_two_parts_that_one_command_uploads(tmp_path: Path) -> None:
    started = [*TINY, *NARROW, "steps=20", "compile=off", "log_every=5", "hydra.run.dir=run"]
    assert wganlab("train", *started, cwd=tmp_path).returncode == 0
    done = wganlab("train", "run=run", "steps=40", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    (name,) = {part.name.rpartition("-")[2] for part in parts}
    steps = [[item["_step"] for item in history(part) if "critic/loss" in item] for part in parts]
    assert [step for part in steps for step in part] == [int(row["step"]) for row in rows(tmp_path / "run")]
    assert steps[1][0] > steps[0][-1], "W&B ignores steps that it has seen"
    advice = re.search(r"wandb sync (\S+) \(all 2 parts at once\)", done.stdout)
    assert advice, done.stdout
    assert advice[1] == f"run/wandb/offline-run-*-{name}"
    command = f"{sys.executable} -m wandb sync --dry-run {advice[1]}"
    said = subprocess.run(
        command, shell=True, cwd=tmp_path, env=without_account(tmp_path), capture_output=True, text=True
    )
    assert all(part.name in said.stderr for part in parts), said


def test_long_names_are_cut_as_w_and_b_wants_them(tmp_path: Path) -> None:
    long = ["logger.wandb.name=" + "n" * 200, "logger.wandb.group=" + "g" * 200, f"logger.wandb.tags=[{'t' * 70},b]"]
    done = wganlab("train", *TINY, *NARROW, "steps=1", *long, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    about = begun(tmp_path / "run")
    assert [len(about["display_name"]), len(about["run_group"])] == [128, 128]
    assert sorted(map(len, about["tags"])) == [1, 64]
    assert about["display_name"].startswith("n" * 119 + "-")


def test_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Online only with a key and an answering server; a server that does not answer costs seconds, not minutes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for mode in ("offline", "disabled", "online"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert loggers.choose_mode()[0] == mode
    started = time.perf_counter()
    assert not loggers.reachable("http://127.0.0.1:9")
    assert time.perf_counter() - started < 6


def test_verdicts_of_a_study_are_a_run_of_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    for run in synthetic_runs(tmp_path / "study", {"a": A, "b": B}):
        identity = {"wandb_id": f"id-of-{run.overrides['arms']}-{run.config['seed']}"}
        (run.folder / "status.json").write_text(json.dumps(run.status | identity))
    found = find_runs([tmp_path / "study"])
    (claim,) = read_claims([CLAIM], ["a", "b"], "")
    verdicts = decide([claim], [Measured.of(claim, found)], [*"01234567"])
    log_verdicts(tmp_path / "study", found, verdicts)
    text = inspect(tmp_path / "study") + inspect(tmp_path / "study", "--summary")
    assert '"verdicts"' in text
    assert "A is better than B" in text
    assert "holds" in text
    assert "eval/fid" in text, "the curve"
    tables = tmp_path / "study" / "wandb"
    (table,) = tables.glob("offline-run-*/files/media/table/verdicts*.json")
    assert json.loads(table.read_text())["data"][0][-1] == "holds"
    (table,) = tables.glob("offline-run-*/files/media/table/runs*.json")
    members = json.loads(table.read_text())["data"]
    assert len(members) == 16
    assert ["id-of-b-3", "b", "3"] in members


def test_the_page_of_a_study_is_an_artifact_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run that takes itself for online hands to W&B, read back from its records."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "index.html").write_text("<h1>a page</h1>")
    logger = loggers.WandbLogger(save_dir=str(tmp_path))
    assert logger.start(config={}, id="abc")
    logger.mode = "online"
    logger.upload_page(tmp_path / "index.html", ["a run without a model"])
    logger.finish(None, 0)
    (artifact,) = [json.loads(line)["artifact"] for line in inspect(tmp_path).splitlines() if '"artifact"' in line[:99]]
    assert (artifact["name"], artifact["type"]) == ("page-abc", "page")
    assert [entry["path"] for entry in artifact["manifest"]["contents"]] == ["index.html"]


def test_all_that_names_a_run_reaches_it(tmp_path: Path) -> None:
    given = {"project": "mine", "entity": "team", "group": "pilot", "name": "first try", "notes": "as Ann proposed"}
    named = [f"logger.wandb.{key}={value}" for key, value in given.items()]
    done = wganlab(
        "train", *TINY, *NARROW, "steps=1", *named, "logger.wandb.tags=[a,b]", "hydra.run.dir=run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    about = begun(tmp_path / "run")
    known = {"project": "project", "entity": "entity", "group": "run_group", "name": "display_name", "notes": "notes"}
    assert {key: about[of_wandb] for key, of_wandb in known.items()} == given
    assert about["tags"] == ["a", "b"]


def test_one_command_uploads_a_sweep(sweep: Path) -> None:
    found = sweep.glob("*/wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", *map(str, found)]
    done = subprocess.run(command, env=without_account(sweep.parent), capture_output=True, text=True)
    assert "Would sync 3 run(s)" in done.stderr, done


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """W&B's agent in ``tmp_path``, as it is once it has asked the server for the sweep."""
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    command = tmp_path / "bin" / "wganlab"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m wganlab "$@"\n')
    command.chmod(0o755)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_PROJECT": "ours",
        "WANDB_SWEEP_ID": "sweep123",
        # the agent sets these two
        "WANDB_RUN_ID": "",
        "WANDB_SWEEP_PARAM_PATH": "",
    }
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    found = Agent(api=None, queue=None, sweep_id="sweep123")
    found._sweep_command = yaml.safe_load(SWEEP.read_text())["command"]
    return found


def test_a_run_of_an_agent_is_the_one_that_its_sweep_knows(agent: Agent, tmp_path: Path) -> None:
    """W&B's own agent starts the command of experiments/wandb_sweep.yaml, with values of its ranges."""
    study = yaml.safe_load(SWEEP.read_text())
    values = {
        key: next(iter(allowed.get("values", [allowed.get("value", allowed.get("min"))])))
        for key, allowed in study["parameters"].items()
    }
    values |= {"images": 12 * 64} | dict(setting.split("=") for setting in TINY if not setting.startswith("steps="))
    arguments = {key: {"value": value} for key, value in values.items()}
    answer = agent._process_command({"type": "run", "run_id": "run456", "program": study["program"], "args": arguments})
    assert "exception" not in answer, answer
    assert agent._run_processes["run456"].wait(timeout=120) == 0
    run = tmp_path / "outputs" / "wandb_sweep" / "sweep123" / "run456"
    assert Run(run).status["wandb_id"] == "run456"
    about, summary = begun(run), json.loads(inspect(run, "--summary"))
    assert (about["run_id"], about["sweep_id"], about["project"]) == ("run456", "sweep123", "ours")
    assert not {"run_group", "display_name"} & about.keys(), "left to the sweep"
    assert about["tags"] == ["digits", "mlp", "wgan_gp"]
    assert summary["config"]["loss.optimizer.lr"] == summary["config"]["loss"]["optimizer"]["critic"]["lr"] == 1e-5
    measured = [float(row["eval/emd"]) for row in rows(run) if row["eval/emd"]]
    assert summary["summary"][study["metric"]["name"]] == pytest.approx(measured[-1])


def test_artifacts_are_checkpoints_and_the_last_grid(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = Run(run_of("wgan_gp"))
    model, samples = loggers.artifacts_of(run.folder, "abc", run.summary)
    assert (model.name, model.type, samples.name, samples.type) == ("model-abc", "model", "samples-abc", "samples")
    assert {name: entry.local_path for name, entry in model.manifest.entries.items()} == {
        name: str(run.folder / "checkpoints" / name) for name in ("last.ckpt", "best.ckpt")
    }
    assert model.metadata["step"] == 12
    assert model.metadata["final"]["eval/emd"] == run.summary["final"]["eval/emd"]
    assert model.metadata["best"]["eval/emd"] == run.summary["best"]["eval/emd"]
    assert list(samples.manifest.entries) == ["step_00000012.png"]
    assert not loggers.artifacts_of(tmp_path, "abc", run.summary)


@pytest.mark.parametrize(("mode", "wanted", "made"), [("online", True, 3), ("online", False, 0), ("offline", True, 0)])
def test_artifacts_are_made_online_only(
    mode: loggers.Mode,
    wanted: bool,
    made: int,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a run that takes itself for online hands to W&B, read back from its records."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "checkpoints").symlink_to(run_of("gan") / "checkpoints")
    shutil.copytree(run_of("gan") / "samples", tmp_path / "samples")
    logger = loggers.WandbLogger(save_dir=str(tmp_path), artifacts=wanted)
    assert logger.start(config={})
    logger.mode = mode
    summary = Run(run_of("gan")).summary
    logger.upload(summary)
    logger.finish(summary, 0)
    records = [json.loads(line) for line in inspect(tmp_path).splitlines()]
    assert len([record for record in records if record["type"] == "artifact"]) == made
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1e6], "no copies"


def test_a_run_that_a_notebook_has_open_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb.init(dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off")) as own:
        logger = loggers.WandbLogger(save_dir=str(tmp_path / "run"))
        (tmp_path / "run").mkdir()
        assert logger.start(config={}, id="another")
        assert logger.experiment.id == "another"
        logger.finish(None, 0)
        assert wandb.run is own
        own.log({"still": "open"})


#: A key of the form that W&B asks for, and a server that is not there: online but for the network.
ACCOUNT = {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": "http://127.0.0.1:9"}


def notebook(script: str, cwd: Path, **environment: str) -> str:
    """What a script prints that has a function ``train`` for the shortest run there is, and wandb and os."""
    tiny = [*TINY, "dataset=gaussians8", "model=toy_mlp", "callbacks=none", "steps=1"]
    tiny = [override for override in tiny if not override.startswith("callbacks.")]
    beginning = (
        "import os, sys, wandb, wganlab\n"
        "settings = wandb.Settings(silent=True, console='off')\n"
        f"def train(name):\n    return wganlab.train([*{tiny!r}, f'hydra.run.dir={{name}}'])\n"
    )
    command = [sys.executable, "-c", beginning + script]
    env = without_account(cwd) | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_w_and_b_is_afterwards_as_if_it_had_not_been_used(tmp_path: Path) -> None:
    """What a notebook sets between two runs holds for the second, and for runs of its own."""
    script = f"""
hooks = sys.exit, sys.excepthook
train('first')
assert 'WANDB_SERVICE' not in os.environ
assert (sys.exit, sys.excepthook) == hooks
os.environ.update({ACCOUNT})
train('second')
os.environ['WANDB_MODE'] = 'offline'
with wandb.init(dir='.', settings=settings) as own:
    own.log({{'a': 1}})
train('third')
assert wandb.run is None
"""
    said = notebook(script, tmp_path)
    assert "W&B is offline (no API key); upload later with: wandb sync first/" in said
    assert "W&B is offline (http://127.0.0.1:9 does not answer); upload later with: wandb sync second/" in said
    assert [item["_step"] for item in history(tmp_path / "second")] == [1]
    assert "W&B is offline (WANDB_MODE=offline); upload later with: wandb sync third/" in said
    assert '"a":1' in inspect(tmp_path).replace(" ", "").replace("\\", "")


def test_a_run_goes_where_the_session_of_a_notebook_says(tmp_path: Path) -> None:
    """Logged in by hand, then with runs of its own open: as wandb.run, and beside it."""
    script = """
wandb.login(key='0123456789' * 4, host='http://127.0.0.1:9', verify=False)
session = wandb.setup()
train('logged_in')
assert wandb.setup() is session
assert session.settings.api_key, 'still logged in'
own = wandb.init(dir='.', mode='offline', settings=settings)
train('beside')
assert wandb.run is own
own.log({'still': 'open'})
own.finish()
own = wandb.init(dir='.', mode='offline', settings=settings, reinit='create_new')
train('beside_another')
own.log({'still': 'open'})
own.finish()
print('own run', own.id)
"""
    said = notebook(script, tmp_path)
    assert "W&B is offline (http://127.0.0.1:9 does not answer); upload later with: wandb sync logged_in/" in said
    own = said.split()[-1]
    for name in ("beside", "beside_another"):
        assert re.search(rf"W&B is offline \(as run \w+, which is open\); upload later with: wandb sync {name}/", said)
    ids = [begun(tmp_path / name)["run_id"] for name in ("logged_in", "beside", "beside_another")]
    assert len({*ids, own}) == 4
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2, "the notebook's own"


def test_wrong_settings_do_not_fail_a_run(tmp_path: Path) -> None:
    script = """
for key, value in (('WANDB_API_KEY', 'abc'), ('WANDB_BASE_URL', 'garbage'), ('WANDB_MODE', 'bogus')):
    os.environ[key] = value
    train(key)
    del os.environ[key]
"""
    assert notebook(script, tmp_path).count("W&B is off") == 3
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        assert (tmp_path / name / "summary.json").is_file()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_mode_that_w_and_b_was_set_up_with_holds(
    mode: loggers.Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in ACCOUNT.items():
        monkeypatch.setenv(key, value)
    wandb.setup(wandb.Settings(mode=mode))
    assert loggers.choose_mode() == (mode, f"as W&B was set up, mode={mode}")
    own = wandb.init(mode="disabled")
    assert loggers.choose_mode() == ("disabled", f"as run {own.id}, which is open")
    own.finish()
