"""The ``wganlab`` command: words are read here, and printed. Nothing heavy is imported before it is needed."""

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wganlab import __version__
from wganlab.environment import place
from wganlab.files import from_here
from wganlab.torchrun import joined

if TYPE_CHECKING:
    from wganlab.runs import Run

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


class Parser(argparse.ArgumentParser):
    """Refuses a wrong command line in one line, without its usage."""

    def error(self, message: str) -> NoReturn:
        sys.exit(print_error(message))


def train(arguments: Sequence[str]) -> int | None:
    """Make one run, continue one, or make every run of a sweep; or say what Hydra is asked to say."""
    parser = Parser(prog="wganlab train", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default="train")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    for flags in (("--help", "-h"), ("--hydra-help",), ("--version",), ("--shell-completion", "-sc")):
        parser.add_argument(*flags, action="store_true")
    options = parser.parse_intermixed_args(list(arguments))
    where = {"config_dir": options.config_dir, "name": options.config_name}
    asks = (options.help, options.hydra_help, options.version, options.shell_completion, options.info, options.cfg)
    if options.multirun and (options.cfg or options.info):
        parser.error("--cfg and --info show one job: leave out -m, and for an arm give +arms= and --config-dir")
    if options.resolve and not options.cfg:
        parser.error("--resolve goes with --cfg")
    if any(asks):
        from wganlab.asking import as_hydra_takes, ask_hydra

        given = options.overrides  # Hydra's own parser wants them last
        others = [text for text in arguments if text not in given]
        try:
            ask_hydra([*others, *given])
        except Exception:  # at values and keys that only a run takes
            if not options.cfg:
                raise
            ask_hydra([*others, *as_hydra_takes(given, **where)])
        return 0
    from wganlab.launch import run
    from wganlab.sweeps import sweep

    if any(text.startswith("run=") for text in options.overrides):
        run([text for text in arguments if text in options.overrides or text.startswith("-")])
    elif options.multirun or "hydra.mode=MULTIRUN" in options.overrides:
        return sweep(options.overrides, **where)
    else:
        run(options.overrides, **where, configure_logging=True)
    return 0


def study(arguments: Sequence[str]) -> int | None:
    """Run the arms of a study, compare them, and decide its claims."""
    from wganlab import study

    parser = Parser(prog="wganlab study", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--index", action="store_true")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--across", action="store_true")
    for flags in (("--help", "-h"), ("--list",)):
        parser.add_argument(*flags, dest="help", action="store_true")
    options = parser.parse_intermixed_args(list(arguments))
    if (options.publish or options.across) and not options.overrides:
        parser.error(f"{'--publish: needs the name of a study' if options.publish else '--across: needs studies'}")
    if options.index or ((options.publish or options.across) and not options.help):
        from wganlab.report import studies  # imports matplotlib

        if options.index:
            print(studies.index(), end="")
            return 0
        if options.across:
            written = studies.across(options.overrides, publish=options.publish)
            print(written[0].read_text(encoding="utf-8"), *map(from_here, written), sep="\n")
            return 0
        folder, given = study.find_study(options.overrides[0]), options.overrides[1:]
        written = studies.publish(folder, Path(study.multirun(folder, given)[1]), budget=study.budget_of(given))
        print(*map(from_here, written), sep="\n")
    elif options.help or not options.overrides:
        print(study.overview())
    else:
        return study.run(options.overrides[0], options.overrides[1:])
    return 0


def report(arguments: Sequence[str]) -> None:
    """Compare saved runs, and say where the page is."""
    parser = Parser(
        prog="wganlab report",
        description="Compare runs: writes results.csv and a self-contained index.html.",
        epilog="example: wganlab report outputs/2026-01-31/12-00-00_sweep",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="run folders, or folders that hold runs")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where to write (default: PATH if there is one, else ./report; of a study, export/ in it)",
    )
    parser.add_argument(
        "--export",
        metavar="DIR",
        help="also write tables (Markdown, LaTeX), samples.png and curves (SVG)",
    )
    parser.add_argument(
        "--publish",
        nargs="+",
        metavar="PAGE",
        default=[],
        help="also refresh pages of Markdown: the files beside a page that it links to, and its <!-- table -->",
    )
    parser.add_argument("--watch", action="store_true", help="while runs go on: write the page again as they have rows")
    options = parser.parse_args(arguments)
    from wganlab.report.page import write_report
    from wganlab.report.publish import export, publish_page
    from wganlab.runs import find_runs

    paths = [os.path.expanduser(path) for path in options.paths]
    output = Path(options.output or (paths[0] if len(paths) == 1 else "report")).expanduser()
    if (output / "verdicts.json").exists():  # of a study, whose own page has its question and its verdicts
        output = output / "export"
    if options.watch:
        follow(paths, output)
    runs = find_runs(paths)
    write_report(runs, output)
    pieces = Path(options.export).expanduser() if options.export else output / "export"
    if options.export or options.publish:
        export(runs, pieces)
    for page in options.publish:
        publish_page(Path(page).expanduser(), pieces)
    print(f"compared {len(runs)} run{'s' * (len(runs) != 1)}: {from_here(output)}/index.html")


def follow(paths: Sequence[str], output: Path) -> None:
    """Write a page of runs as long as they go on, and say where it is; the last page is left to others."""
    from wganlab.report.page import write_report
    from wganlab.report.watch import watch

    told = False

    def write(runs: list["Run"], going_on: bool) -> None:
        nonlocal told
        if going_on:
            write_report(runs, output, going_on=True)
        if not told:
            page = (output / "index.html").resolve()
            print(f"first page, which follows the runs as they go on: file://{page}", flush=True)
        told = True

    watch(paths, write)


def on_a_run(command: str, summary: str) -> Callable[[Sequence[str]], None]:
    """A command that works on a trained run: its keys are those of conf/COMMAND.yaml, its work is wganlab.COMMAND."""

    def call(arguments: Sequence[str]) -> None:
        if {"-h", "--help"} & set(arguments):
            from wganlab.config import conf_dir

            print(f"wganlab {command} key=value ...: {summary}\n")
            print((conf_dir() / f"{command}.yaml").read_text(), end="")
            return
        from importlib import import_module

        import_module(f"wganlab.{command}").main(arguments)

    return call


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": train,
    "study": study,
    "evaluate": on_a_run("evaluate", "writes the scores of a checkpoint, and their protocol, to evaluation/"),
    "report": report,
    "sample": on_a_run(
        "sample", "writes samples.png, interpolation.png and images/ (points.csv of points, table.csv of tables)"
    ),
    "export": on_a_run("export", "writes a generator, its config and its card to export/"),
}


def main() -> None:
    """Entry point: exit code 0, or 2 with one line on stderr for bad input, or 1 when something went wrong."""
    gc.set_threshold(100_000, 50)  # imports make a million objects and no garbage: a tenth of the start-up
    sys.path.append(os.getcwd())  # a user's own classes, named by _target_
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    if arguments[0] == "--version":
        print(f"wganlab {__version__}")
        return
    if arguments[0] in ("-sc", "--shell-completion"):  # as the script calls that Hydra writes for a shell
        arguments = ["train", *arguments]
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace(" train ", " ", 1)
    command = COMMANDS.get(arguments[0])
    if command is None:
        sys.exit(print_error(f"unknown command {arguments[0]}: allowed are {', '.join(COMMANDS)}"))
    if place() and arguments[0] not in ("train", "study"):
        sys.exit(print_error(f"{arguments[0]}: runs in one process; torchrun and srun are for train and study"))
    try:
        with joined():
            code = command(arguments[1:])
        if code:
            sys.exit(code)
    except KeyboardInterrupt as error:
        sys.exit(error.args[0] if error.args else 130)
    except Exception as error:
        sys.exit(report_error(error))


def report_error(error: Exception) -> int:
    """Print what went wrong, and return the exit code.

    Bad input and a failed run are one line; a bug in a part of the user's is a line that names its config key, and the
    traceback.
    """
    # by name: the classes live in modules that take long to import
    family, name = type(error).__module__.partition(".")[0], type(error).__name__
    where = next((note for note in getattr(error, "__notes__", ()) if note.startswith("raised by the config's")), None)
    if name == "StoppedError":
        print_error(str(error))
        return int(error.exit_code)  # type: ignore[attr-defined]
    if where:
        print_error(f"{name}, {where}")
        traceback.print_exception(error)
        return 1
    if name in ("ConfigError", "MisconfigurationException") or family in ("hydra", "omegaconf", "yaml"):
        return print_error(" ".join(str(error).split()))
    if isinstance(error, FloatingPointError | OSError) or name == "BusyError":
        print_error(f"{name}: {error}" if isinstance(error, OSError) else str(error))
    else:
        traceback.print_exception(error)
    return 1


def print_error(message: str) -> int:
    """Print one line on stderr; the exit code for bad input."""
    print(f"wganlab: {message}", file=sys.stderr)
    return 2
