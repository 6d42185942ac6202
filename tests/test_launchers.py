"""Many runs, elsewhere: the launchers and the search that Hydra's plugins bring, for real."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import begin, in_process, wait_for, wganlab, without_account
from wganlab.runs import Run, find_runs

TINY = [
    "steps=20",
    "log_every=10",
    "logger=csv",
    "dataset=gaussians8",
    "model=toy_mlp",
    "model.generator.hidden=[16]",
    "model.critic.hidden=[16]",
    "callbacks.samples=null",
    "callbacks.evaluation.every=20",
    "callbacks.evaluation.n=32",
    "callbacks.checkpoints.every=5",
]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A user's own study of two arms."""
    folder = tmp_path / "mine"
    (folder / "arms").mkdir(parents=True)
    (folder / "study.yaml").write_text('question: Which?\nsweep: {seed: "0"}\n')
    for loss in ("gan", "wgan_clip"):
        (folder / "arms" / f"{loss}.yaml").write_text(f"# @package _global_\ndefaults: [override /loss: {loss}]\n")
    return tmp_path


@pytest.mark.slow  # joblib also runs the study of the README, and takes up a sweep whose worker was killed
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_study_runs_with_each_launcher_and_again_runs_only_what_is_missing(study: Path, launcher: str) -> None:
    command = ["study", "mine", f"hydra/launcher={launcher}", *[t for t in TINY if t != "callbacks.samples=null"]]
    done = wganlab(*command, cwd=study, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = find_runs([study / "outputs"])
    assert [run.status["state"] for run in runs] == ["completed"] * 2
    assert {run.summary["threads"] for run in runs} == {1}
    lost, kept = runs[0].folder, [run.folder / "summary.json" for run in runs[1:]]
    before = [path.stat().st_mtime_ns for path in kept]
    for name in ("status.json", "summary.json"):
        (lost / name).unlink()
    done = wganlab(*command, cwd=study, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Run(lost).status["state"] == "completed"
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert (study / "outputs/study/mine/index.html").exists()


@pytest.mark.slow
def test_jobs_that_share_cores_have_one_thread_each_unless_told_otherwise(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = ["train", "-m", "seed=0", "hydra/launcher=submitit_local", *TINY]
    for told, threads in (({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)):
        env = without_account(tmp_path) | told
        env = {key: value for key, value in env.items() if key in {**environment, **told}}
        where = f"hydra.sweep.dir=threads{threads}"
        done = subprocess.run(
            [sys.executable, "-m", "wganlab", *command, where], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert find_runs([tmp_path / f"threads{threads}"])[0].summary["threads"] == threads


@pytest.mark.slow
def test_a_job_that_is_preempted_is_queued_again_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    arguments = [argument for argument in TINY if not argument.startswith(("steps", "callbacks.evaluation.every"))]
    sweep = ["hydra/launcher=submitit_local", "steps=1000", "callbacks.evaluation.every=1000", "hydra.sweep.dir=out"]
    run = begin("train", "-m", "seed=1", *arguments, *sweep, cwd=tmp_path)
    wait_for(lambda: list((tmp_path / "out").rglob("last.ckpt")), "a checkpoint")
    (last,) = (tmp_path / "out").rglob("last.ckpt")
    # submitit's name for the process of a job, and the signal with which a cluster announces pre-emption
    pid = Run(last.parents[1]).status["pid"]
    os.kill(pid, signal.SIGUSR2)
    _, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors
    assert Run(last.parents[1]).status["state"] == "completed"
    assert Run(last.parents[1]).status["pid"] != pid
    logs = "".join(path.read_text() for path in (tmp_path / "out/.submitit").rglob("*_log.out"))
    assert "continuing after generator step" in logs
    steps = [row["step"] for row in Run(last.parents[1]).rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 1000


#: What submitit asks of Slurm, done on this machine: sbatch runs the tasks of an array, scontrol runs one again.
SLURM = """#!{python}
import os, re, subprocess, sys
from pathlib import Path

name, here = Path(sys.argv[0]).name, Path(sys.argv[0]).parent

def start(task):
    script = (here / "script").read_text()
    folder = re.search(r"_submit (\\S+)", script)[1].replace("%j", f"7_{{task}}")
    env = dict(os.environ, SUBMITIT_EXECUTOR="slurm", SLURM_JOB_ID=f"7{{task}}", SLURM_ARRAY_JOB_ID="7",
               SLURM_ARRAY_TASK_ID=task, SLURM_JOB_NODELIST="here", SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0",
               SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0")
    with open(here / "log", "a") as log:
        subprocess.Popen([sys.executable, "-u", "-m", "submitit.core._submit", folder],
                         env=env, stdout=log, stderr=log, start_new_session=True)

if name == "sbatch":
    (here / "script").write_text(Path(sys.argv[-1]).read_text())
    first, last = re.search(r"--array=(\\d+)-(\\d+)", (here / "script").read_text()).groups()
    for task in range(int(first), int(last) + 1):
        start(str(task))
    print("Submitted batch job 7")
elif name == "scontrol":
    assert sys.argv[1] == "requeue", sys.argv
    start(sys.argv[2].partition("_")[2])
elif name == "sacct":
    print("JobID|State|NodeList\\n7_0|RUNNING|here\\n7_1|RUNNING|here")
"""


@pytest.mark.slow
def test_on_slurm_jobs_are_an_array_and_what_is_preempted_is_queued_again(tmp_path: Path) -> None:
    """Without a Slurm controller: its commands are stood in for, and submitit's side of it is real."""
    commands = tmp_path / "slurm"
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (commands / name).write_text(SLURM.format(python=sys.executable))
        (commands / name).chmod(0o755)
    arguments = [argument for argument in TINY if not argument.startswith(("steps", "callbacks.evaluation.every"))]
    sweep = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.sweep.dir=out"]
    command = ["train", "-m", "seed=1,2", *arguments, *sweep, "steps=1000", "callbacks.evaluation.every=1000"]
    run = begin(*command, cwd=tmp_path, PATH=f"{commands}:{os.environ['PATH']}")
    last = tmp_path / "out/seed=2/checkpoints/last.ckpt"
    wait_for(last.exists, "a checkpoint")
    pid = Run(last.parents[1]).status["pid"]
    os.kill(pid, signal.SIGUSR2)
    _, errors = run.communicate(timeout=240)
    log = (commands / "log").read_text()
    assert run.returncode == 0, errors + log
    assert [run.status["state"] for run in find_runs([tmp_path / "out"])] == ["completed"] * 2
    assert Run(last.parents[1]).status["pid"] != pid
    assert "continuing after generator step" in log
    script = (commands / "script").read_text()
    for line in ("--array=0-1%2", "--cpus-per-task=4", "--mem=16GB", "--signal=USR2@120", "--partition=gpu"):
        assert f"#SBATCH {line}" in script


#: A search has a budget of its own, and cannot pass null on.
SMALL = [argument for argument in TINY if not argument.startswith("steps") and "null" not in argument]
SEARCH = ["train", "-m", "+search=wgan_gp", "hydra.sweep.dir=found", "hydra.sweeper.n_trials=4"]


def trials(folder: Path) -> list[Any]:
    optuna = pytest.importorskip("optuna")
    return optuna.load_study(study_name="wgan_gp", storage=f"sqlite:///{folder}/found/search.db").get_trials()


def test_a_search_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [*SEARCH, *[a for a in SMALL if "callbacks.evaluation.every" not in a], "images=32000"]
    search = begin(*command, cwd=tmp_path)

    def second_has_begun() -> bool:
        folders = list((tmp_path / "found").glob("loss*"))
        return len(folders) == 2 and all((folder / "checkpoints/last.ckpt").exists() for folder in folders)

    wait_for(second_has_begun, "a second trial")
    search.kill()
    search.communicate()
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE", "RUNNING"]
    half = next(run for run in find_runs([tmp_path / "found"]) if run.status["state"] != "completed")
    done = wganlab(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing a search with 1 of 4 trials made" in done.stdout
    assert "continuing after generator step" in done.stdout
    assert Run(half.folder).status["state"] == "completed"
    assert [trial.state.name for trial in trials(tmp_path)].count("COMPLETE") == 4
    assert len(find_runs([tmp_path / "found"])) == 4
    assert "4 trials, 1 interrupted or failed; the best came to" in done.stdout
    # what was found holds for the config that it was found with
    done = in_process(*command, "batch_size=32", cwd=tmp_path)
    assert done.returncode == 2
    assert "batch_size=32: cannot change in a search that is continued; it was 64" in done.stderr


@pytest.mark.slow
def test_a_search_with_more_trials_makes_those_that_are_missing(tmp_path: Path) -> None:
    for n in (1, 2):
        trials_wanted = [argument.replace("n_trials=4", f"n_trials={n}") for argument in SEARCH]
        done = wganlab(*trials_wanted, *SMALL, "images=1280", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(find_runs([tmp_path / "found"])) == n


def test_a_trial_that_diverges_is_a_bad_result_and_not_the_end(tmp_path: Path) -> None:
    one = [argument.replace("n_trials=4", "n_trials=1") for argument in SEARCH]
    done = wganlab(*one, "loss.optimizer.lr=1e30", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training has diverged" in done.stderr
    (trial,) = trials(tmp_path)
    assert trial.value == 1e9


@pytest.mark.parametrize(
    ("arguments", "broken", "line"),
    [
        (["hydra/launcher=submitit_slurm"], "submitit", "hydra/launcher=submitit_slurm: cannot be used here"),
        (["+search=gan"], "sqlalchemy", "hydra/sweeper=optuna: cannot be used here"),
        (["+search=gan"], "optuna", "hydra/sweeper=optuna: cannot be used here"),
    ],
)
def test_plugins_that_do_not_work_together_are_named_in_one_line(
    arguments: list[str], broken: str, line: str, tmp_path: Path
) -> None:
    (tmp_path / "fake" / broken).mkdir(parents=True)
    (tmp_path / "fake" / broken / "__init__.py").write_text("raise ImportError('of another version')\n")
    done = wganlab("train", "-m", *arguments, "dataset=digits", cwd=tmp_path, PYTHONPATH=str(tmp_path / "fake"))
    assert done.returncode == 2, done.stderr
    (said,) = [text for text in done.stderr.splitlines() if text.startswith("wganlab:")]
    assert said.startswith(f"wganlab: {line}")
    assert "brings versions that work together" in said
    assert "of another version" in said
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("images=null", "images=null: Optuna's plugin cannot pass null on to its trials"),
        ("callbacks=none", "callbacks.evaluation: is off, and a search minimises"),
        ("hydra.sweeper.storage=null", "hydra.sweeper: study_name=gan and storage=None"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(argument: str, line: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done = in_process("train", "-m", "+search=gan", argument, "dataset=digits", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith(f"wganlab: {line}")
    assert not list(tmp_path.rglob("status.json"))


def test_what_runs_on_a_cluster_may_need_what_this_machine_has_not(tmp_path: Path) -> None:
    """Until it is submitted, for which there is no Slurm here."""
    command = ["train", "-m", "seed=1,2", "accelerator=gpu", "hydra/launcher=submitit_slurm"]
    done = wganlab(*command, cwd=tmp_path)
    assert done.returncode != 0
    assert "this machine has none" not in done.stderr
    assert "are you indeed on a slurm cluster" in done.stderr


def test_a_broken_plugin_of_hydra_is_named(tmp_path: Path) -> None:
    (tmp_path / "hydra_plugins" / "hydra_of_old").mkdir(parents=True)
    (tmp_path / "hydra_plugins/hydra_of_old/__init__.py").write_text("import numpy\nnumpy.float_\n")
    done = wganlab("train", "-m", "seed=0,1", *TINY, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("wganlab: Hydra's plugin hydra_of_old is installed and cannot be imported")
    assert len(done.stderr.splitlines()) == 1
