"""Counts from Schemathesis' reports and from the service, and the page of `benchmarks.stress.fuzz`."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.hardware import cpu_name

JOB_ENDS = ("succeeded", "failed", "cancelled")


@dataclass
class Tally:
    """What was asked and answered, by operation."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    failures: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    jobs: dict[str, Counter[str]] = field(default_factory=dict)  # by kind: how those ended that the requests began
    reasons: Counter[str] = field(default_factory=Counter)  # types of the problems that jobs ended with

    @property
    def requests(self) -> int:
        """How many requests were answered."""
        return sum(counts.total() for counts in self.statuses.values())

    @property
    def server_errors(self) -> int:
        """How many answers were 5xx, or none."""
        return sum(
            n for counts in self.statuses.values() for status, n in counts.items() if status >= 500 or not status
        )

    @property
    def violations(self) -> int:
        """How many checks failed."""
        return sum(counts.total() for counts in self.failures.values())

    @property
    def broken_jobs(self) -> int:
        """How many jobs ended by the service's fault (dead) or not at all."""
        return sum(n for counts in self.jobs.values() for state, n in counts.items() if state not in JOB_ENDS)


def read_report(report: Path, tally: Tally) -> None:
    """Add what a report says."""
    with report.open() as lines:
        for line in lines:
            scenario = json.loads(line).get("ScenarioFinished")
            if scenario is None:
                continue
            recorder = scenario["recorder"]
            label = recorder["label"]
            for name, interaction in recorder.get("interactions", {}).items():
                response = interaction.get("response")
                status = response["status_code"] if response else 0  # no answer at all
                tally.statuses.setdefault(label, Counter())[status] += 1
                for check in recorder.get("checks", {}).get(name, ()):
                    if check["status"] != "success":
                        tally.failures.setdefault(label, Counter())[check["name"]] += 1
                        tally.examples.setdefault((label, check["name"]), _example(interaction["request"], status))


def _example(request: dict[str, object], status: int) -> str:
    body = request.get("body")
    text = str(body.get("$base64", "")) if isinstance(body, dict) else ""
    uri = str(request["uri"]).split("/", 3)[-1]
    return f"{request['method']} /{uri[:200]} -> {status}, body (base64) {text[:300] or 'none'}"


def page(tally: Tally, *, rounds: int, seconds: float, seed: int, log: str, database: str) -> str:
    """The results as Markdown."""
    lines = [
        "# Fuzzing the service",
        "",
        f"`python -m benchmarks.stress.fuzz` on {datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, schemathesis "
        f"{version('schemathesis')}, {database}: {tally.requests:,} requests in {rounds} rounds (seeds {seed} to "
        f"{seed + rounds - 1}), {seconds:.0f} s.",
        "",
        f"**{tally.server_errors} answers 5xx, {tally.violations} answers that the OpenAPI document does not allow** "
        "(status, content type, headers, schema).",
        "",
        "| operation | requests | 2xx | 4xx | 5xx | no answer | violations |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, counts in sorted(tally.statuses.items()):
        by = Counter(status // 100 for status in counts.elements())
        found = ", ".join(f"{name} {count}" for name, count in sorted(tally.failures.get(label, {}).items())) or "0"
        lines.append(f"| `{label}` | {counts.total()} | {by[2]} | {by[4]} | {by[5]} | {by[0]} | {found} |")
    lines += ["", f"Jobs that the requests began, {tally.broken_jobs} of them dead or without an end:", ""]
    lines += [
        f"- {kind}: {', '.join(f'{count} {state}' for state, count in sorted(counts.items()))}"
        for kind, counts in sorted(tally.jobs.items())
    ]
    if tally.reasons:
        lines += [
            "",
            f"Why jobs failed: {', '.join(f'{count} {name}' for name, count in tally.reasons.most_common())}.",
        ]
    if tally.examples:
        lines += ["", "The first of each:", ""]
        lines += [f"- `{label}` {name}: `{example}`" for (label, name), example in sorted(tally.examples.items())]
    unexpected = sorted(set(re.findall(r"unexpected (\w+), reference \w+, at ([^\n\"]*)", log)))
    if unexpected:
        lines += ["", "Unexpected exceptions in the service's log:", ""]
        lines += [f"- {name} at {where}" for name, where in unexpected]
    return "\n".join(lines) + "\n"
