"""The README.md in a model folder: what the model is, what it comes from, how good it is, what it can't do."""

from typing import Any

LIMITS = (
    "A small model trained on little text: it states things that are not so, repeats what its data says, and has "
    "no notion of harm. Measure it on your own data before you rely on it."
)


def write(title: str, record: dict[str, Any], metrics: list[str]) -> str:
    """A model card as Markdown.

    Args:
        record: the run's lineage.
        metrics: lines that state a measured value, its data and, where known, its interval.
    """
    lines = ["---", "library_name: transformers", "tags: [fledge]", "---", f"# {title}", ""]
    lines += [f"Made by `fledge {record['command']}` with seed {record['seed']}.", "", "## Results", ""]
    lines += [f"- {metric}" for metric in metrics]
    lines += ["", "## Lineage", ""]
    for parent in record.get("parents", []):
        named = f"`{parent['path']}`" + (f" at commit {parent['commit'][:12]}" if "commit" in parent else "")
        licence = f", licence {parent['licence']}" if "licence" in parent else ""
        lines.append(f"- {parent['kind']}: {named} (sha256 {parent['sha256'][:16]}{licence})")
    if record.get("git_commit"):
        lines.append(f"- fledge at commit {record['git_commit'][:12]}")
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    data = record.get("data", [])
    entries = data.get("sources", []) if isinstance(data, dict) else data
    licences = [f"{e['source']}: {e['licence']}" for e in entries if isinstance(e, dict) and "licence" in e]
    lines += [f"- {versions}", f"- data licences: {', '.join(licences) or 'not stated by the sources'}"]
    return "\n".join([*lines, "", "## Limits", "", LIMITS, ""])
