"""Carry out one command from its config: make or continue its run folder, freeze, run, record the result.

The command line and the demo both call `execute`, so there is one way in which a stage is run.
"""

import contextlib
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fledge import atomic, checkpoints, config, console, hub, lineage, processes, rundir
from fledge.config import CommandConfig, FieldPath
from fledge.errors import FledgeError, Interrupted, RunError, RunFailed, UsageError
from fledge.rundir import RunFolder

Result = dict[str, Any]

SEEDS = "seeds.json"  # in the folder of a run of several seeds
SPENT = ".spent.json"  # in a run folder: the time of its sittings; of one that was killed nothing is known


def execute(resolved: CommandConfig, out: Path | None = None, options: dict[str, Any] | None = None) -> Result:
    """Run a command in a new run folder (or, for a command that only shows things, without one).

    Args:
        out: the run folder; None takes the next free name.
        options: what was typed, for lineage and for comparison on resume.
    Returns:
        the command's `--json` object.
    """
    run = importlib.import_module(f"{resolved.stage}.{resolved.command}").run
    if not resolved.makes_run:
        return _timed(resolved, run, None)
    with _joined(type(resolved)):
        folder = rundir.shared(lambda: rundir.create(resolved, out, options))
        try:
            with folder:
                console.note(f"run folder: {folder.path}")
                return _timed(resolved, run, folder)
        except KeyboardInterrupt:  # outside of a loop, which stops politely
            raise Interrupted(f"interrupted; continue with --resume {folder.path}") from None
        except (FledgeError, OSError) as error:
            if _can_be_put_right(error):
                rundir.discard_if_empty(folder.path)
            raise


def _can_be_put_right(error: FledgeError | OSError) -> bool:
    """Whether the user can, and type the same again; the system's refusals are a matter of paths and rights."""
    return getattr(error, "exit_code", FledgeError.exit_code) == FledgeError.exit_code


def _joined(config_class: type[CommandConfig]) -> contextlib.AbstractContextManager[None]:
    """The block in which the processes of a run work together; an error if the command runs in one only."""
    if not config_class.distributed:
        processes.require_one(f"fledge {config_class.stage} {config_class.command}")
    return processes.joined()


def resume(
    config_class: type[CommandConfig], path: Path, file: Path | None, overrides: Mapping[FieldPath, Any]
) -> Result:
    """Continue a run from its newest whole checkpoint, with everything from its own config.yaml.

    Args:
        file, overrides: what was typed besides `--resume`; may only repeat what the run has, or ask for more.
    Raises:
        RunError: no run folder, of another command, in use, or an option differs.
    """
    file = file and file.absolute()
    with _where_it_began(path) as path:
        if (path / SEEDS).is_file():
            return _resume_seeds(config_class, path, file, overrides)
        return _resume(config_class, path, file, overrides)


@contextlib.contextmanager
def _where_it_began(path: Path) -> Iterator[Path]:
    """Work in the folder in which a run was started, as its relative paths are meant from there; gives its path.

    A run that was moved since is left where it is: the paths are then meant from the present folder.
    """
    record = _record(path) if rundir.is_run(path) or (path / SEEDS).is_file() else {}
    began = Path(record.get("working_folder", "."))
    was = began / record.get("run_folder", path)
    if not began.is_dir() or began.samefile(".") or not (was.is_dir() and was.samefile(path)):
        yield path
        return
    path = path.absolute()
    console.note(f"{path}: was started in {began}, from where its paths are meant")
    with contextlib.chdir(began):
        yield path


def _resume(
    config_class: type[CommandConfig], path: Path, file: Path | None, overrides: Mapping[FieldPath, Any]
) -> Result:
    with _joined(config_class), rundir.shared(lambda: rundir.reopen(path)) as folder, hub.as_recorded(_record(path)):
        resolved = resumed_config(config_class, path, file, overrides)
        wants_more = _asks_for_more(config_class, path, resolved)
        done = processes.gathered(rundir.read_result(path))[0]  # all have read before one writes
        if done is not None and not wants_more:
            hint = " (ask for more with --run.max-steps)" if "run.max_steps" in config_class.resumable else ""
            console.note(f"{path}: finished already; nothing to do{hint}")
            return done
        if done is not None and folder.resumes_from is None:
            raise RunError(
                f"{path}: finished, and has no whole checkpoint left to go on from; "
                f"train its model further in a new run, with --init {path}"
            )
        if folder.resumes_from:
            _require_known_code(resolved, path)
        before = {}
        if processes.is_first():
            before = {name: (path / name).read_bytes() for name in ("config.yaml", *(["result.json"] if done else []))}
            (path / "result.json").unlink(missing_ok=True)
        folder.freeze(resolved)
        if folder.resumes_from is None:
            rundir.restart(folder)
            console.note(f"{path}: no whole checkpoint; starting again with the same seed")
        else:
            console.note(f"{path}: continuing from {folder.resumes_from.name}")
            # Damaged ones will be written again; until then they would count as the newest when pruning.
            checkpoints.drop_after(folder.checkpoints, checkpoints.step_of(folder.resumes_from))
        run = importlib.import_module(f"{resolved.stage}.{resolved.command}").run
        try:
            return _timed(resolved, run, folder)
        except (FledgeError, OSError) as error:
            if _can_be_put_right(error) and folder.resumes_from == checkpoints.newest_whole(folder.checkpoints):
                for name, content in before.items():  # nothing was added, so it is still the same run
                    folder.write(name, content)
            raise


def _require_known_code(resolved: CommandConfig, path: Path) -> None:
    """Make sure that Python files that a config names are the rewards that the run began with, before one is run."""
    known = [reward.get("sha256") for reward in _record(path).get("rewards", [])]
    for leaf, _ in config.leaves(type(resolved)):
        file = Path(str(config.get(resolved, leaf)))
        if file.suffix == ".py" and file.is_file() and lineage.sha256_file(file) not in known:
            raise RunError(f"{path}: its rewards changed since the run began; put it back, or start a new run: {file}")


def execute_seeds(resolved: CommandConfig, seeds: list[int], out: Path | None, options: dict[str, Any]) -> Result:
    """Run a training command once a seed, in `RUN/seed-<n>`, and write one summary with mean and spread."""
    processes.require_one("--seeds")
    path = out or rundir.next_free(f"{resolved.stage}-{resolved.command}")
    rundir.make_folder(path)
    atomic.write_file(path / SEEDS, json.dumps({"seeds": seeds, "options": options, **lineage.place(path)}))
    atomic.write_file(path / "config.yaml", config.dump(resolved))  # last: with it, it can be resumed
    try:
        return _each_seed(path, seeds, lambda child, seed: execute(_seeded(resolved, seed), child, options))
    except (FledgeError, OSError) as error:
        if _can_be_put_right(error):
            rundir.discard_if_empty(path)
        raise


def _resume_seeds(
    config_class: type[CommandConfig], path: Path, file: Path | None, overrides: Mapping[FieldPath, Any]
) -> Result:
    processes.require_one("--seeds")
    record = json.loads((path / SEEDS).read_text(encoding="utf-8"))
    resolved = resumed_config(config_class, path, file, overrides)

    def carry_on(child: Path, seed: int) -> Result:
        if rundir.is_run(child):
            return resume(config_class, child, file, {**overrides, ("run", "seed"): seed})
        return execute(_seeded(resolved, seed), child, record["options"])

    return _each_seed(path, record["seeds"], carry_on)


def _seeded(resolved: CommandConfig, seed: int) -> CommandConfig:
    return config.with_values(resolved, {"run.seed": seed})


def _each_seed(path: Path, seeds: list[int], run: Callable[[Path, int], Result]) -> Result:
    """Run the seeds of a folder one after the other and sum them up."""
    results = []
    for seed in seeds:
        console.note(f"seed {seed}")
        try:
            results.append(run(path / f"seed-{seed}", seed))
        except Interrupted:
            raise Interrupted(f"stopped in seed {seed}; continue with --resume {path}") from None
    return _summarise_seeds(path, seeds, results)


def _summarise_seeds(path: Path, seeds: list[int], results: list[Result]) -> Result:
    numeric = [
        key
        for key, value in results[0].items()
        if isinstance(value, int | float) and all(isinstance(r.get(key), int | float) for r in results)
    ]
    spread = {
        key: {
            "mean": statistics.fmean(r[key] for r in results),
            "deviation": statistics.stdev(r[key] for r in results) if len(results) > 1 else None,
            "values": [r[key] for r in results],
        }
        for key in numeric
    }
    rows = [
        [key, f"{s['mean']:.5g}", "-" if s["deviation"] is None else f"{s['deviation']:.2g}"]
        for key, s in spread.items()
    ]
    summary = f"# {len(seeds)} seeds: {', '.join(map(str, seeds))}\n\n" + console.table(
        rows, ["result", "mean", "standard deviation"]
    )
    atomic.write_file(path / "summary.md", summary + "\n")
    result = {"command": results[0]["command"], "out": str(path), "seeds": seeds, "results": spread}
    atomic.write_file(path / "result.json", json.dumps(result, indent=1))
    return result


def _timed(resolved: CommandConfig, run: Callable[..., Result | None], folder: RunFolder | None) -> Result:
    """Call a command's run and add what every `--json` object has.

    Raises:
        Interrupted: the command was asked to stop when nothing was left to do; what follows it must not begin.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    path = folder.path if folder else None
    earlier = json.loads((path / SPENT).read_text(encoding="utf-8")) if path and (path / SPENT).is_file() else {}

    def spent() -> Result:
        now = {"elapsed_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        found = {name: round(value + earlier.get(name, 0.0), 3) for name, value in now.items()}
        if folder:
            folder.write(SPENT, json.dumps(found))
        return found

    try:
        result = (run(resolved, folder) if folder else run(resolved)) or {}
    except (Interrupted, RunFailed):
        spent()
        raise
    common: Result = {
        "command": f"{resolved.stage} {resolved.command}",
        "out": str(path) if path else None,
        "model": str(path / "model") if path and (path / "model").is_dir() else None,
        **spent(),
    }
    complete = common | result
    if folder:
        folder.write("result.json", json.dumps(complete, indent=1))
        if folder.stop_requested:
            raise Interrupted(f"stopped; {folder.path} was finished already")
    return complete


def resumed_config(
    config_class: type[CommandConfig], path: Path, file: Path | None, overrides: Mapping[FieldPath, Any]
) -> CommandConfig:
    """The config with which a run goes on: its frozen one with the changes that a resumed run may make.

    Raises:
        RunError: it is no run of this command, or an option differs from the run's own and may not.
    """
    own = f"{config_class.stage} {config_class.command}"
    frozen = config.load(config_class, path / "config.yaml")
    record = _record(path)
    if record.get("command", own) != own:
        raise RunError(f"{path}: a run of 'fledge {record['command']}', not of 'fledge {own}'")
    asked = config_class.model_validate(record["asked"]) if "asked" in record else frozen
    # What was typed first beat the config file then, so it does when only the file is repeated.
    typed = {tuple(k.split(".")): value for k, value in record.get("options", {}).items() if k != "config"}
    named = {*overrides, *(config.values_in(config_class, file) if file else ())}
    left_out = {
        leaf: config.get(asked, leaf)
        for leaf, info in config.leaves(config_class)
        if info.is_required() and leaf not in named
    }
    given = config.load(config_class, file or path / "config.yaml", {**left_out, **typed, **overrides})
    problems, changes = [], {}
    for leaf in sorted(named):
        dotted, old, new = ".".join(leaf), config.get(frozen, leaf), config.get(given, leaf)
        rule = config_class.resumable.get(dotted)
        # Said again, so kept; but a value that only happens to be what the config had then is a wish.
        is_repeated = rule is None or leaf not in overrides or (rule == "more" and leaf in typed)
        if new == old or (is_repeated and new == config.get(asked, leaf)):
            continue
        if rule == "any" or (rule == "more" and new > old):
            changes[dotted] = new
        else:
            more = " (it can only grow)" if rule == "more" else ""
            source = f"--config {file}: " if leaf not in overrides else ""
            problems.append(
                f"{source}{config.flag(leaf)} {new}: the run has {old}{more}; leave it out, or start a new run"
            )
    if problems:
        raise RunError("\n".join(f"{path}: {problem}" for problem in problems))
    return config.with_values(frozen, changes)


def _record(path: Path) -> dict[str, Any]:
    """What a run folder, or a folder of several seeds, says about how it was started."""
    if (path / SEEDS).is_file():
        return dict(json.loads((path / SEEDS).read_text(encoding="utf-8")))
    return lineage.read(path)


def check_seeds(path: Path, seeds: list[int]) -> None:
    """Check that `--seeds`, repeated with `--resume`, are the run's own.

    Raises:
        RunError: they are others, or it is a run of one seed.
    """
    own = _record(path).get("seeds")
    if seeds != own:
        has = f"has {','.join(map(str, own))}" if own else "is of a single seed"
        raise RunError(f"{path}: --seeds: the run {has}; leave it out, or start a new run")


def _asks_for_more(config_class: type[CommandConfig], path: Path, resolved: CommandConfig) -> bool:
    frozen = config.load(config_class, path / "config.yaml")
    growing = [tuple(dotted.split(".")) for dotted, rule in config_class.resumable.items() if rule == "more"]
    return any(config.get(resolved, leaf) != config.get(frozen, leaf) for leaf in growing)


def parse_seeds(text: str) -> list[int]:
    """The seeds of `--seeds 0,1,2`.

    Raises:
        UsageError: not a list of different whole numbers.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text}: expected whole numbers, such as 0,1,2") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds {text}: the seeds must be different and not negative")
    return seeds
