"""The record as JUnit XML: one test case for each BatchNorm, one for the verification."""

from __future__ import annotations

from xml.etree import ElementTree

from bnfold.report.record import Record


def render(record: Record) -> str:
    """A `testsuite` document; a BatchNorm that stays is a skipped case, a failed verification a failure."""
    if record["command"] == "bench":
        return _document(record, [_timing(record, entry) for entry in record["entries"]])
    cases = [_case(record, outcome) for outcome in record["outcomes"]]
    verification = record["verification"]
    if verification is not None:
        case = ElementTree.Element("testcase", classname=record["model"], name="equivalent")
        for output in verification["outputs"]:
            if not output["equivalent"]:
                message = f"{output['name']}: error {output['error']:.3e}, budget {output['budget']:.3e}"
                ElementTree.SubElement(case, "failure", message=message)
        cases.append(case)
    return _document(record, cases)


def _document(record: Record, cases: list[ElementTree.Element]) -> str:
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


def _timing(record: Record, entry: Record) -> ElementTree.Element:
    """One inference of one model, in seconds; a slower model is no failure."""
    place = "/".join(filter(None, ["bench", entry["provider"], entry["level"]]))
    case = ElementTree.Element("testcase", classname=place, name=entry["model"], time=f"{entry['median_ms'] / 1e3:.9f}")
    properties = ElementTree.SubElement(case, "properties")
    for name in ("verdict", "ratio", "ratio_low", "ratio_high", "session_ms"):
        ElementTree.SubElement(properties, "property", name=name, value=str(entry[name]))
    return case


def _case(record: Record, outcome: Record) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=f"{record['model']}/{outcome['scope']}", name=outcome["batchnorm"])
    if outcome["status"] == "kept":
        ElementTree.SubElement(case, "skipped", message=f"{outcome['reason']} at {outcome['at']}: {outcome['detail']}")
    return case
