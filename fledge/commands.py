"""Carry out one command from its config: make or continue its run folder, freeze, run, record the result.

The command line and the demo both call `execute`, so there is one way in which a stage is run.
"""

import importlib
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge import atomic, config, console, lineage, rundir
from fledge.config import CommandConfig, FieldPath
from fledge.errors import FledgeError, RunError, UsageError

Result = dict[str, Any]


def execute(
    resolved: CommandConfig, out: Path | None = None, options: dict[str, Any] | None = None
) -> Result:
    """Run a command in a new run folder (or, for a command that only shows things, without one).

    Args:
        out: the run folder; None takes the next free name.
        options: what was typed, for lineage and for comparison on resume.
    Returns:
        the command's `--json` object.
    """
    run = importlib.import_module(f"{resolved.stage}.{resolved.command}").run
    if not resolved.makes_run:
        return _timed(resolved, None, lambda: run(resolved))
    with rundir.create(resolved, out, options) as folder:
        console.note(f"run folder: {folder.path}")
        try:
            return _timed(resolved, folder.path, lambda: run(resolved, folder))
        except FledgeError as error:
            if error.exit_code == FledgeError.exit_code:  # the user can put it right and type the same again
                rundir.discard_if_empty(folder)
            raise


def resume(
    config_class: type[CommandConfig], path: Path, file: Path | None, overrides: Mapping[FieldPath, Any]
) -> Result:
    """Continue a run from its newest whole checkpoint, with everything from its own config.yaml.

    Args:
        file, overrides: what was typed besides `--resume`; may only repeat what the run has, or ask for more.
    Raises:
        RunError: no run folder, of another command, in use, or an option differs.
    """
    if (path / "seeds.json").is_file():
        return _resume_seeds(config_class, path, file, overrides)
    with rundir.reopen(path) as folder:
        resolved = _merged(config_class, path, file, overrides)
        done = rundir.read_result(path)
        if done is not None and not _asks_for_more(config_class, path, resolved):
            console.note(f"{path}: finished already; nothing to do (ask for more with --run.max-steps)")
            return done
        (path / "result.json").unlink(missing_ok=True)
        folder.freeze(resolved)
        if folder.resumes_from is None:
            rundir.restart(folder)
            console.note(f"{path}: no whole checkpoint; starting again with the same seed")
        else:
            console.note(f"{path}: continuing from {folder.resumes_from.name}")
        run = importlib.import_module(f"{resolved.stage}.{resolved.command}").run
        return _timed(resolved, path, lambda: run(resolved, folder))


def execute_seeds(
    resolved: CommandConfig, seeds: list[int], out: Path | None, options: dict[str, Any]
) -> Result:
    """Run a training command once a seed, in `RUN/seed-<n>`, and write one summary with mean and spread."""
    path = out or rundir.next_free(f"{resolved.stage}-{resolved.command}")
    if path.exists() and any(path.iterdir()):
        raise RunError(f"{path}: exists already and is never overwritten; choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    (path / "seeds.json").write_text(json.dumps({"seeds": seeds, "options": options}), encoding="utf-8")
    (path / "config.yaml").write_text(config.dump(resolved), encoding="utf-8")
    results = []
    for seed in seeds:
        console.note(f"seed {seed}")
        results.append(
            execute(config.with_values(resolved, {"run.seed": seed}), path / f"seed-{seed}", options)
        )
    return _summarise_seeds(path, seeds, results)


def _resume_seeds(
    config_class: type[CommandConfig], path: Path, file: Path | None, overrides: Mapping[FieldPath, Any]
) -> Result:
    record = json.loads((path / "seeds.json").read_text(encoding="utf-8"))
    results = []
    for seed in record["seeds"]:
        child = path / f"seed-{seed}"
        console.note(f"seed {seed}")
        if rundir.is_run(child):
            results.append(resume(config_class, child, file, overrides))
        else:
            base = config.load(config_class, path / "config.yaml", {**overrides, ("run", "seed"): seed})
            results.append(execute(base, child, record["options"]))
    return _summarise_seeds(path, record["seeds"], results)


def _summarise_seeds(path: Path, seeds: list[int], results: list[Result]) -> Result:
    numeric = [
        key
        for key, value in results[0].items()
        if isinstance(value, int | float) and all(isinstance(r.get(key), int | float) for r in results)
    ]
    spread = {
        key: {
            "mean": statistics.fmean(r[key] for r in results),
            "deviation": statistics.stdev(r[key] for r in results) if len(results) > 1 else 0.0,
            "values": [r[key] for r in results],
        }
        for key in numeric
    }
    rows = [[key, f"{s['mean']:.5g}", f"{s['deviation']:.2g}"] for key, s in spread.items()]
    summary = f"# {len(seeds)} seeds: {', '.join(map(str, seeds))}\n\n" + console.table(
        rows, ["result", "mean", "standard deviation"]
    )
    (path / "summary.md").write_text(summary + "\n", encoding="utf-8")
    result = {"command": results[0]["command"], "out": str(path), "seeds": seeds, "results": spread}
    (path / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _timed(resolved: CommandConfig, path: Path | None, run: Any) -> Result:
    """Call a command's run and add what every `--json` object has."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run() or {}
    common: Result = {
        "command": f"{resolved.stage} {resolved.command}",
        "out": str(path) if path else None,
        "model": str(path / "model") if path and (path / "model").is_dir() else None,
        "elapsed_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
    }
    complete = common | result
    if path is not None:
        atomic.write_file(path / "result.json", json.dumps(complete, indent=1))
    return complete


def _merged(
    config_class: type[CommandConfig], path: Path, file: Path | None, overrides: Mapping[FieldPath, Any]
) -> CommandConfig:
    """The run's frozen config with the changes that a resumed run may make.

    Raises:
        RunError: an option differs from the run's own and may not.
    """
    record = lineage.read(path)
    own = f"{config_class.stage} {config_class.command}"
    if record["command"] != own:
        raise RunError(f"{path}: a run of 'fledge {record['command']}', not of 'fledge {own}'")
    frozen = config.load(config_class, path / "config.yaml")
    typed = record.get("options", {})
    asked = config.load(config_class, path / "config.yaml", overrides)
    problems, changes = [], {}
    for leaf in overrides:
        dotted = ".".join(leaf)
        old, new = config.get(frozen, leaf), config.get(asked, leaf)
        if new == old or (dotted in typed and typed[dotted] == json.loads(json.dumps(overrides[leaf]))):
            continue
        rule = config_class.resumable.get(dotted)
        if rule == "any" or (rule == "more" and new > old):
            changes[dotted] = new
        else:
            more = " (it can only grow)" if rule == "more" else ""
            problems.append(
                f"{config.flag(leaf)} {new}: the run has {old}{more}; leave it out, or start a new run"
            )
    if (
        file is not None
        and typed.get("config") != str(file)
        and file.resolve() != (path / "config.yaml").resolve()
    ):
        given = config.load(config_class, file, overrides)
        for leaf, _ in config.leaves(config_class):
            if config.get(given, leaf) != config.get(frozen, leaf):
                problems.append(f"--config {file}: {config.flag(leaf)} differs from the run's own")
                break
    if problems:
        raise RunError("\n".join(f"{path}: {problem}" for problem in problems))
    return config.with_values(frozen, changes)


def _asks_for_more(config_class: type[CommandConfig], path: Path, resolved: CommandConfig) -> bool:
    frozen = config.load(config_class, path / "config.yaml")
    return any(
        rule == "more" and config.get(resolved, leaf) != config.get(frozen, leaf)
        for dotted, rule in config_class.resumable.items()
        for leaf in [tuple(dotted.split("."))]
    )


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
