"""Renders the record as JUnit XML: a case for each BatchNorm and output, for inner values, proof and smoke run.

It is red where the exit code is not 0. Elements and attributes are those of the schema that Jenkins validates against:
properties belong to the suite, and the figures of a case are its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from xml.etree import ElementTree

from bnfold.errors import escape
from bnfold.report.bench_terminal import gate_line
from bnfold.report.diff_terminal import summary
from bnfold.report.documents import (
    AnyDocument,
    BenchEntry,
    DiffDocument,
    Document,
    DriftOf,
    ErrorDocument,
    FileDocument,
    FleetRow,
    Folded,
    Kept,
    Method,
    Proof,
    Provenance,
    SmokeRun,
    Value,
    Verification,
)


def render(record: AnyDocument) -> str:
    """A `testsuite` document; a BatchNorm that stays is a skipped case, an output that differs a failure."""
    cases = [_error(cast(ErrorDocument, record))] if "error" in record else _cases(record)
    counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error", "skipped")}
    suite = ElementTree.Element(
        "testsuite",
        name=f"bnfold {record['command']}",
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
    )
    if "error" not in record:
        suite.set("time", f"{record['seconds']:.3f}")
    if "provenance" in record:
        suite.set("timestamp", record["provenance"]["date"])
        suite.append(_properties(record["provenance"]))
    suite.extend(cases)
    _make_printable(suite)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _cases(record: Document) -> list[ElementTree.Element]:
    if record["command"] == "diff":
        return _difference(record)
    if record["command"] == "fleet":
        return [_fleet_model(record["task"], row) for row in record.get("rows", ())]
    if record["command"] == "bench":
        cases = [_timing(entry, record["method"]) for entry in record["entries"]]
    elif record["command"] == "verify":
        cases = _verification(record["candidate"], record)
    else:
        cases = [_case(record, outcome) for outcome in record["outcomes"]]
        cases += _verification(record["model"], record["verification"]) if record["verification"] else []
        cases += (
            [_drift(record["model"], row, record["drift"]["limit"]) for row in record["drift"]["batchnorms"]]
            if "drift" in record
            else []
        )
        if timed := record.get("bench"):
            cases += [_timing(entry, timed["method"]) for entry in timed["entries"]]
    if record["command"] != "bench" and "proof" in record:
        cases.append(_proof(record["candidate"] if record["command"] == "verify" else record["model"], record["proof"]))
    return cases


def _fleet_model(task: str, row: FleetRow) -> ElementTree.Element:
    """A model of a fleet: a failure where the answer is no, an error where there is none."""
    case = ElementTree.Element("testcase", classname=f"fleet/{task}", name=row["source"], time=str(row["seconds"]))
    if row["exit_code"]:
        kind = "failure" if row["exit_code"] == 1 else "error"
        ElementTree.SubElement(case, kind, message=row["message"] or "")
    _show(case, {name: row[name] for name in ("found", "folded", "kept", "bytes", "peak_bytes", "worker")})
    return case


def _error(record: ErrorDocument) -> ElementTree.Element:
    """One case, for a command that has no answer."""
    case = ElementTree.Element("testcase", classname="bnfold", name=record["command"])
    ElementTree.SubElement(case, "error", type=record["error"]["kind"], message=record["error"]["message"])
    return case


def _properties(provenance: Provenance) -> ElementTree.Element:
    """The provenance of the record, as properties of the suite."""
    values = {f"sha256 of {name}": digest or "cannot be read" for name, digest in provenance["files"].items()}
    values |= {f"version of {name}": version for name, version in provenance["libraries"].items()}
    values |= {"command": " ".join(provenance["command"]), "python": provenance["python"]}
    if provenance["seed"] is not None:
        values["seed"] = str(provenance["seed"])
    properties = ElementTree.Element("properties")
    for name, value in values.items():
        ElementTree.SubElement(properties, "property", name=name, value=value)
    return properties


def _show(case: ElementTree.Element, figures: Mapping[str, Any]) -> None:
    """Write figures as the output of a case."""
    output = ElementTree.SubElement(case, "system-out")
    output.text = "\n".join(f"{name}: {value}" for name, value in figures.items())


def _make_printable(element: ElementTree.Element) -> None:
    """Escape characters that XML cannot hold. A name from a model may hold any."""
    for name, value in element.items():
        element.set(name, escape(value))
    for inner in element:
        _make_printable(inner)


def _proof(model: str, proof: Proof) -> ElementTree.Element:
    """The obligations that were met; one that is not met is a failure."""
    case = ElementTree.Element("testcase", classname=model, name="proof", time=str(proof["seconds"]))
    figures = {f"obligations_{kind}": met for kind, met in proof["obligations"].items()}
    if not proof["proved"]:
        ElementTree.SubElement(case, "failure", message=proof["failure"] or "not proved")
    _show(case, {**figures, "weights": proof["weights"], "worst_ulp": proof["worst_ulp"]})
    return case


def _timing(entry: BenchEntry, method: Method) -> ElementTree.Element:
    """One inference of one model, in seconds; a slower model is a failure where a gate asked."""
    place = "/".join(filter(None, ["bench", entry["provider"], entry["level"]]))
    case = ElementTree.Element("testcase", classname=place, name=entry["model"], time=f"{entry['median_ms'] / 1e3:.9f}")
    if entry["gate"] in ("not met", "cannot tell"):
        is_failure = entry["gate"] == "not met" or method["require"] is not None
        kind = "failure" if is_failure else "skipped"
        ElementTree.SubElement(case, kind, message=gate_line(method, entry))
    names = ("verdict", "ratio", "ratio_low", "ratio_high", "visible_change", "gate", "session_ms")
    _show(case, {name: entry[name] for name in names})  # type: ignore[literal-required]
    return case


def _verification(model: str, verification: Verification) -> list[ElementTree.Element]:
    """Outputs by name, place and level; one that differs only as deployed, where nobody asked, is skipped."""
    cases: list[ElementTree.Element] = []
    for output in verification["outputs"]:
        where = f"{output['provider']}, optimisation {output['level']}"
        cases.append(_verdict(model, f"output {output['name']} ({where})", output))
        if output["reason"]:
            cases[-1][0].text = "\n".join(map(escape, verification["findings"]))
            cases[-1][0].tag = "skipped" if verification["equivalent"] else "failure"
    for number, change in enumerate(verification.get("interface", ()), 1):
        cases.append(ElementTree.Element("testcase", classname=model, name=f"interface {number}"))
        ElementTree.SubElement(cases[-1], "failure", message=change)
    differing = [value for value in verification["values"] if value["reason"]]
    if "smoke" in verification:
        cases.append(_smoke(model, verification["smoke"], verification["findings"]))
    if verification["values"]:
        cases.append(_verdict(model, "inner values", differing[0] if differing else verification["values"][0]))
    return cases


def _smoke(model: str, smoke: SmokeRun, findings: list[str]) -> ElementTree.Element:
    """One run of both models; where there could be none, it is skipped."""
    name = f"run once in {smoke['runtime']}"
    case = ElementTree.Element("testcase", classname=model, name=name, time=str(smoke["seconds"]))
    if smoke["difference"]:
        ElementTree.SubElement(case, "failure", message=smoke["difference"])
    elif smoke["error"] is None:
        ElementTree.SubElement(case, "skipped", message="; ".join(findings))
    return case


def _verdict(model: str, name: str, verdict: Value) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=model, name=name)
    if verdict["reason"]:
        message = f"{verdict['name']}: {verdict['reason']} (on the input {verdict['input']!r})"
        ElementTree.SubElement(case, "failure", message=message)
    return case


def _drift(model: str, row: DriftOf, limit: float | None) -> ElementTree.Element:
    """A BatchNorm beside data; one that drifts farther than a gate allows is a failure."""
    case = ElementTree.Element("testcase", classname=f"{model}/data", name=row["batchnorm"])
    if limit is not None and abs(row["shift"]) - (row["chance"] or 0.0) > limit:
        message = f"channel {row['channel']}: mean off by {row['shift']:.3g} running deviations"
        ElementTree.SubElement(case, "failure", message=message)
    _show(case, {name: row[name] for name in ("channel", "shift", "chance", "ratio_channel", "ratio")})
    return case


def _difference(record: DiffDocument) -> list[ElementTree.Element]:
    """A case for each BatchNorm, and one for the answer, which is a failure where a gate asked."""
    cases: list[ElementTree.Element] = []
    for fate in record["fates"]:
        case = ElementTree.Element(
            "testcase", classname=f"{record['reference']}/{fate['scope']}", name=fate["batchnorm"]
        )
        if fate["status"] == "unknown":
            ElementTree.SubElement(case, "skipped", message=fate["detail"])
        _show(case, {"status": fate["status"], "into": ", ".join(fate["into"])})
        cases.append(case)
    answer = ElementTree.Element("testcase", classname=record["candidate"], name="identical")
    if not record["identical"]:
        kind = "failure" if record.get("fail_on_difference") else "skipped"
        ElementTree.SubElement(answer, kind, message=summary(record))
    return [*cases, answer]


def _case(record: FileDocument, outcome: Folded | Kept) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=f"{record['model']}/{outcome['scope']}", name=outcome["batchnorm"])
    if outcome["status"] == "kept":
        ElementTree.SubElement(case, "skipped", message=f"{outcome['reason']} at {outcome['at']}: {outcome['detail']}")
    elif record.get("fail_on_foldable"):
        ElementTree.SubElement(case, "failure", message=f"it could fold into {', '.join(outcome['into'])}")
    return case
