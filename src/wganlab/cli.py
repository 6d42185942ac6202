"""The ``wganlab`` command. Nothing heavy is imported before it is known to be needed."""

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGUSR2, raise_signal
from typing import Any

from wganlab.environment import is_further_rank, place
from wganlab.torchrun import defer_to_rank_zero, joined

HELP = """wganlab: train GANs that differ in exactly one declared thing, and see what the difference does.

  wganlab train    train one run, or with -m every combination of a sweep
                   wganlab train -m loss=gan,wgan_clip,wgan_gp dataset=digits
                   or continue a stopped one:  wganlab train run=PATH
  wganlab study    run all arms of a study of experiments/, and compare them
                   wganlab study s2_mlp_mnist dataset.root=data
  wganlab evaluate all scores of a trained generator, and what its critic is like
                   wganlab evaluate run=outputs/2026-01-31/12-00-00_digits_wgan_gp
  wganlab report   compare runs and sweeps: results.csv and a self-contained index.html
                   wganlab report outputs/2026-01-31/12-00-00_sweep
  wganlab sample   images and a latent interpolation from a trained generator
                   wganlab sample run=outputs/2026-01-31/12-00-00_digits_wgan_gp n=64
  wganlab export   a trained generator as files that load without wganlab, with a model card
                   wganlab export run=outputs/2026-01-31/12-00-00_digits_wgan_gp format=onnx

wganlab COMMAND --help explains a command.
"""


def job(config: Any) -> float | None:  # a DictConfig, of a package that is not imported yet
    """Hydra's task function, at the top of a light module: launchers ship it to their workers by name."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from wganlab.callbacks.interruption import StoppedError
    from wganlab.environment import is_submitit
    from wganlab.launch import WORST, train
    from wganlab.search import is_search

    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        return train(config)
    except SystemExit as error:
        if is_submitit(SIGUSR2):  # which has put the job into the queue again
            raise
        raise RuntimeError(f"sys.exit({error.code})") from error
    except Exception as error:
        if not in_sweep or place():  # ranks share their jobs: none of them goes on alone
            sys.exit(explain(error))  # before Hydra adds lines of its own
        if isinstance(error, FloatingPointError) and is_search(HydraConfig.get()):
            refuse(str(error))  # to a search that is a result
            return WORST
        if isinstance(error, StoppedError):  # the signal was meant for all jobs
            refuse(str(error))
            if is_submitit(error.number):  # the run is saved; now it may be queued again
                raise_signal(error.number)
            raise KeyboardInterrupt(error.exit_code) from error
        raise  # the other jobs go on


def train(arguments: Sequence[str]) -> None:
    """Check every job of the command line, then hand it to Hydra."""
    if any(argument.startswith("run=") for argument in arguments):
        resume(arguments)
        return
    import hydra
    from hydra._internal.utils import get_args_parser

    from wganlab.config import (
        compose_sweep,
        conf_dir,
        fix_sweep_dir,
        forget_defaults_of_plugins,
        jobs,
        name_jobs_by_what_varies,
        sweep_what_depends,
    )
    from wganlab.schema import ConfigError
    from wganlab.search import check_plugins, check_ranks, continued, is_search, runs_elsewhere

    options = one_line_errors(get_args_parser()).parse_args(list(arguments))
    if options.config_path or options.experimental_rerun or (options.resolve and not options.cfg):
        sys.exit(refuse("--config-path, --experimental-rerun and --resolve without --cfg are not supported"))
    if options.multirun and (options.cfg or options.info):
        sys.exit(refuse("--cfg and --info show one job: leave out -m, and for an arm give +arms= and --config-dir"))
    asks_only = options.cfg or options.info or options.help or options.hydra_help or options.shell_completion
    folders: list[Path] = []
    hydra_node: Any = None
    if not asks_only:
        where = {"config_dir": options.config_dir, "name": options.config_name or "train"}
        overrides = options.overrides
        if options.multirun:
            overrides = fix_sweep_dir(name_jobs_by_what_varies(overrides), **where)
            hydra_node = compose_sweep(overrides, **where).hydra
            check_plugins(hydra_node, overrides)
            check_ranks(hydra_node)
        for config in jobs(overrides, multirun=options.multirun, folders=folders, **where):
            from wganlab.build import check  # imports for seconds: only once the command line is known to compose

            check(config, here=hydra_node is None or not runs_elsewhere(hydra_node))
            if hydra_node is not None and is_search(hydra_node) and not config.callbacks.get("evaluation"):
                raise ConfigError("callbacks.evaluation", ": is off, and a search minimises what it measures")
        if options.multirun:
            flags = [argument for argument in arguments if argument not in options.overrides]
            arguments = [*flags, *sweep_what_depends(overrides, **where)]
    elif options.cfg or options.info:
        forget_defaults_of_plugins()
    if is_further_rank():  # the run's folder is rank zero's: what Hydra writes here is for nobody
        key = "hydra.sweep.dir" if options.multirun else "hydra.run.dir"
        arguments = [*arguments, f"{key}={tempfile.mkdtemp(prefix='wganlab-')}"]
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, so that main() can word them
    launch = hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(job)
    if asks_only or not options.multirun:
        launch()
        return
    if is_search(hydra_node):
        with continued(hydra_node, config) as missing:
            sys.argv += missing or []
            if missing is not None:
                launch()
        return
    from wganlab.sweeps import run_sweep

    code = run_sweep(launch, folders)
    if place():
        from wganlab.parallel import broadcast_object

        code = broadcast_object(code)
    if code:
        sys.exit(code)


def resume(arguments: Sequence[str]) -> None:
    """Continue a run in its folder."""
    import yaml
    from omegaconf import OmegaConf

    from wganlab.config import check_same_job
    from wganlab.runs import Run
    from wganlab.schema import ConfigError

    if flags := [argument for argument in arguments if "=" not in argument]:
        raise ConfigError(" ".join(flags), ": only a higher steps= or images= can be given to a run that is continued")
    given = dict(argument.split("=", 1) for argument in arguments)
    run = Run.open(given.pop("run"))
    changes = {key: yaml.safe_load(value) for key, value in given.items()}
    budget = "steps" if run.config.get("images") is None else "images"
    for key in {"steps", "images"} & changes.keys() - {budget}:
        raise ConfigError(
            key, f"={changes[key]}: the budget of this run is {budget}={run.config.get(budget)}; raise that"
        )
    wanted = OmegaConf.create(run.config)
    for key, value in changes.items():
        OmegaConf.update(wanted, key, value)
    check_same_job(run.folder, OmegaConf.to_container(wanted, resolve=False), "run")  # type: ignore[arg-type]
    from wganlab.launch import resume as resume_run

    resume_run(run.folder, wanted, changed=bool(changes))


def study(arguments: Sequence[str]) -> None:
    """Sweep the arms of a study, and compare them."""
    from wganlab.study import arm_names, find_study, index, multirun, publish, read_study, studies, verdicts

    if not arguments or arguments[0] in ("-h", "--help", "--list"):
        print(
            "wganlab study NAME [key=value ...]: runs all arms x seeds of a study, or those that arms= and seed=\n"
            "name, compares them, and decides the claims of the study; --index prints all studies' outcomes\n"
        )
        for name, folder in studies().items():
            content = read_study(folder)
            print(f"{name}: {content['question']}\n    arms={','.join(arm_names(folder))}")
            if content.get("budgets"):
                print(f"    budget={','.join(content['budgets'])}")
        return
    if list(arguments) == ["--index"]:
        print(index(), end="")
        return
    if flags := [argument for argument in arguments if argument.startswith("-")]:
        sys.exit(refuse(f"{' '.join(flags)}: a study takes key=value only"))
    folder = find_study(arguments[0])
    sweep_arguments, sweep_dir = multirun(folder, arguments[1:])
    code: int | str | None = 0
    try:
        train(sweep_arguments)
    except SystemExit as incomplete:  # what there is of a study is worth a page, too
        code = incomplete.code
    if not is_further_rank() and any(Path(sweep_dir).rglob("metrics.csv")):
        from wganlab.report.page import write_report
        from wganlab.runs import find_runs

        runs = find_runs([sweep_dir])
        found = verdicts(folder, runs)
        write_report(runs, Path(sweep_dir), question=read_study(folder)["question"], verdicts=found)
        for verdict in found:
            print(f"{verdict.explained}: {verdict.claim.says} ({verdict.claim.source})")
            print(f"    {verdict.claim.number}: {verdict.measured}, wanted {verdict.claim.wanted}")
        print(compared(runs, sweep_dir))
        if found and any((run.folder / "wandb").is_dir() for run in runs):
            publish(Path(sweep_dir), runs, found)
    if code:
        sys.exit(code)


def report(arguments: Sequence[str]) -> None:
    """Compare saved runs, and say where the page is."""
    parser = argparse.ArgumentParser(
        prog="wganlab report",
        description="Compare runs: writes results.csv and a self-contained index.html.",
        epilog="example: wganlab report outputs/2026-01-31/12-00-00_sweep",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="run folders, or folders that hold runs")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: PATH if there is one, else ./report)")
    parser.add_argument(
        "--export",
        metavar="DIR",
        help="also write tables (Markdown, LaTeX), samples.png and curves (SVG)",
    )
    options = one_line_errors(parser).parse_args(arguments)
    from wganlab.report.page import export, write_report
    from wganlab.runs import find_runs

    output = options.output or (options.paths[0] if len(options.paths) == 1 else "report")
    runs = find_runs(options.paths)
    write_report(runs, Path(output))
    if options.export:
        export(runs, Path(options.export))
    print(compared(runs, output))


def compared(runs: Sequence[Any], output: str) -> str:
    """Where the page is."""
    return f"compared {len(runs)} run{'s' * (len(runs) != 1)}: {os.path.relpath(output)}/index.html"


def evaluate(arguments: Sequence[str]) -> None:
    """Score a trained generator."""
    if explains("evaluate", "writes the scores of a checkpoint, and their protocol, to evaluation/", arguments):
        return
    from wganlab.evaluate import main

    main(arguments)


def sample(arguments: Sequence[str]) -> None:
    """Draw from a trained generator."""
    if explains("sample", "writes samples.png, interpolation.png and images/ (points.csv of points)", arguments):
        return
    from wganlab.sample import main

    main(arguments)


def export(arguments: Sequence[str]) -> None:
    """Write a trained generator down for others."""
    if explains("export", "writes a generator, its config and its card to export/", arguments):
        return
    from wganlab.export import main

    main(arguments)


def explains(command: str, what: str, arguments: Sequence[str]) -> bool:
    """Whether help was asked for, and given: what a command does, and its keys."""
    if not {"-h", "--help"} & set(arguments):
        return False
    from wganlab.config import conf_dir

    print(f"wganlab {command} key=value ...: {what}\n")
    print((conf_dir() / f"{command}.yaml").read_text(), end="")
    return True


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "study": study,
    "evaluate": evaluate,
    "report": report,
    "sample": sample,
    "export": export,
}


def main() -> None:
    """Entry point: exit code 0, or 2 with one line on stderr for bad input, or 1 when something went wrong."""
    gc.set_threshold(100_000, 50)  # imports make a million objects and no garbage: a tenth of the start-up
    sys.path.append(os.getcwd())  # a user's own classes, named by _target_
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    command = COMMANDS.get(arguments[0])
    if command is None:
        sys.exit(refuse(f"unknown command {arguments[0]}: allowed are {', '.join(COMMANDS)}"))
    if place() and arguments[0] not in ("train", "study"):
        sys.exit(refuse(f"{arguments[0]}: runs in one process; torchrun and srun are for train and study"))
    try:
        with joined():
            command(arguments[1:])
    except KeyboardInterrupt as error:
        sys.exit(error.args[0] if error.args else 130)
    except Exception as error:
        sys.exit(explain(error))


def explain(error: Exception) -> int:
    """Word an error in one line where that says all; returns the exit code. Others are raised again."""
    defer_to_rank_zero()
    # by name: the classes live in modules that take long to import
    family = type(error).__module__.partition(".")[0]
    if type(error).__name__ == "StoppedError":
        refuse(str(error))
        return int(error.exit_code)  # type: ignore[attr-defined]
    if type(error).__name__ == "ConfigError" or family in ("hydra", "omegaconf", "yaml"):
        return refuse(" ".join(str(error).split()))
    if isinstance(error, FloatingPointError | OSError) or type(error).__name__ == "BusyError":
        refuse(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error))
        return 1
    raise error


def one_line_errors(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """A parser that refuses a wrong command line without repeating its usage."""
    parser.error = lambda message: sys.exit(refuse(message))  # type: ignore[method-assign]
    return parser


def refuse(message: str) -> int:
    """Print one line on stderr; the exit code for bad input."""
    print(f"wganlab: {message}", file=sys.stderr)
    return 2
