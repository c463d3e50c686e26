"""The record as JUnit XML: a test case for each BatchNorm and output, for inner values, the proof, the smoke run."""

from __future__ import annotations

from xml.etree import ElementTree

from bnfold.report.bench_terminal import gate_line
from bnfold.report.documents import (
    BenchEntry,
    Document,
    FileDocument,
    Folded,
    Kept,
    Method,
    Proof,
    SmokeRun,
    Value,
    Verification,
)


def render(record: Document) -> str:
    """A `testsuite` document; a BatchNorm that stays is a skipped case, an output that differs a failure."""
    if record["command"] == "bench":
        cases = [_timing(entry, record["method"]) for entry in record["entries"]]
    elif record["command"] == "verify":
        cases = _verification(record["candidate"], record)
    else:
        cases = [_case(record, outcome) for outcome in record["outcomes"]]
        cases += _verification(record["model"], record["verification"]) if record["verification"] else []
    if record["command"] != "bench" and "proof" in record:
        cases.append(_proof(record["candidate"] if record["command"] == "verify" else record["model"], record["proof"]))
    suite = ElementTree.Element(
        "testsuite",
        name=f"bnfold {record['command']}",
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
        time=str(record["seconds"]),
    )
    suite.extend(cases)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _proof(model: str, proof: Proof) -> ElementTree.Element:
    """The obligations that were met; one that is not met is a failure."""
    case = ElementTree.Element("testcase", classname=model, name="proof", time=str(proof["seconds"]))
    properties = ElementTree.SubElement(case, "properties")
    figures = {f"obligations_{kind}": met for kind, met in proof["obligations"].items()}
    for name, value in {**figures, "weights": proof["weights"], "worst_ulp": proof["worst_ulp"]}.items():
        ElementTree.SubElement(properties, "property", name=name, value=str(value))
    if not proof["proved"]:
        ElementTree.SubElement(case, "failure", message=proof["failure"] or "not proved")
    return case


def _timing(entry: BenchEntry, method: Method) -> ElementTree.Element:
    """One inference of one model, in seconds; a slower model is a failure where a gate asked."""
    place = "/".join(filter(None, ["bench", entry["provider"], entry["level"]]))
    case = ElementTree.Element("testcase", classname=place, name=entry["model"], time=f"{entry['median_ms'] / 1e3:.9f}")
    properties = ElementTree.SubElement(case, "properties")
    for name in ("verdict", "ratio", "ratio_low", "ratio_high", "visible_change", "gate", "session_ms"):
        ElementTree.SubElement(properties, "property", name=name, value=str(entry[name]))
    if entry["gate"] in ("not met", "cannot tell"):
        is_failure = entry["gate"] == "not met" or method["require"] is not None
        kind = "failure" if is_failure else "skipped"
        ElementTree.SubElement(case, kind, message=gate_line(method, entry))
    return case


def _verification(model: str, verification: Verification) -> list[ElementTree.Element]:
    """Outputs by name, place and level; one that differs only as deployed, where nobody asked, is skipped."""
    cases: list[ElementTree.Element] = []
    for output in verification["outputs"]:
        where = f"{output['provider']}, optimisation {output['level']}"
        cases.append(_verdict(model, f"output {output['name']} ({where})", output))
        if verification["equivalent"] and output["reason"]:
            cases[-1][0].tag = "skipped"
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


def _case(record: FileDocument, outcome: Folded | Kept) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=f"{record['model']}/{outcome['scope']}", name=outcome["batchnorm"])
    if outcome["status"] == "kept":
        ElementTree.SubElement(case, "skipped", message=f"{outcome['reason']} at {outcome['at']}: {outcome['detail']}")
    return case
