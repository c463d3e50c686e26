"""The top of a page: the answer, in a sentence and a few figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bnfold.errors import plural
from bnfold.report.documents import Record
from bnfold.report.html import figures, fleet
from bnfold.report.html.checking import is_overruled, verification_of
from bnfold.report.html.differing import summarize_difference
from bnfold.report.html.parts import Mood, Summary, Tile
from bnfold.report.html.text import change, count, scientific, seconds, shown, size
from bnfold.report.html.timing import model_names, setting


def summarize(record: Record) -> Summary:
    """The summary of a record of any command."""
    if record.get("error"):
        message = shown(record["error"].get("message", ""), 400)
        return Summary("bad", "There is no answer", [message], [])
    if record.get("command") == "diff":
        return summarize_difference(record)
    if record.get("command") == "fleet":
        return fleet.summarize(record)
    if "batchnorms" in record:
        return _of_fold(record)
    if record.get("entries"):
        return _of_bench(record)
    verification = verification_of(record)
    if verification:
        return Summary(*_judgement(verification), tiles=list(_verification_tiles(verification)))
    return Summary("plain", "A record without results")


def _of_fold(record: Record) -> Summary:
    counts = record["batchnorms"]
    total, folded, kept = (int(counts.get(name) or 0) for name in ("found", "folded", "kept"))
    verb = "would fold" if record.get("output") is None else "folded"
    if not total:
        headline = "The model has no BatchNorm"
    elif not kept:
        headline = f"The only BatchNorm {verb}" if total == 1 else f"All {total:,} BatchNorms {verb}"
    else:
        rest = "stayed" if verb == "folded" else "would stay"
        headline = f"{folded:,} of {plural(total, 'BatchNorm')} {verb}, {kept:,} {rest}"
    verification = verification_of(record)
    mood: Mood = "plain"
    judgement, sentences = "", list[str]()
    if verification:
        mood, judgement, sentences = _judgement(verification)
    if mood == "bad":
        headline = judgement
    elif judgement:
        sentences = [f"{judgement}.", *sentences]
    elif record.get("output") is not None:
        mood, sentences = "unsure", ["The result was not verified."]
    return Summary(mood, headline, sentences, [*_fold_tiles(record, folded, total), *_verification_tiles(verification)])


def _fold_tiles(record: Record, folded: int, total: int) -> Iterator[Tile]:
    yield Tile("BatchNorms folded" if record.get("output") else "BatchNorms that fold", f"{folded:,} of {total:,}")
    affines = (record.get("affines") or {}).get("folded")
    if affines:
        yield Tile("other affines", count(affines))
    if record.get("merges"):
        yield Tile("merges" if record.get("output") else "possible merges", count(len(record["merges"])))
    for key, label, written in (("nodes", "nodes", count), ("bytes", "file size", size)):
        sizes = record.get(key) or {}
        before, after = sizes.get("before"), sizes.get("after")
        if after is not None:
            yield Tile(label, written(after), f"before {written(before)} ({change(before, after)})")
        elif before is not None:
            yield Tile(label, written(before))
    if record.get("seconds") is not None:
        yield Tile("time taken", seconds(record["seconds"]))


def _judgement(verification: Record) -> tuple[Mood, str, list[str]]:
    has_gate = "gate" in verification
    if not verification.get("equivalent"):
        divergence = verification.get("first_divergence") or {}
        what = "The outputs are not within the gate" if has_gate else "The two models are not equivalent"
        return "bad", what, list(_parting(divergence))
    changed = [output for output in verification.get("outputs") or [] if is_overruled(output, verification)]
    return (
        "good",
        "The outputs are within the gate" if has_gate else "The two models are equivalent",
        [
            f"As deployed on {shown(output.get('provider', ''), 40)}, the runtime by itself changes "
            f"{shown(output.get('name', ''), 80)}: see the verification."
            for output in changed
        ],
    )


def _parting(divergence: Record) -> Iterator[str]:
    if "name" in divergence:
        maker = f", made by {shown(divergence['node'], 80)}" if divergence.get("node") else ""
        why = f": {shown(divergence['reason'], 200)}" if divergence.get("reason") else ""
        yield f"They first differ at {shown(divergence['name'], 80)}{maker}{why}."


def _verification_tiles(verification: Record | None) -> Iterator[Tile]:
    if verification is None:
        return
    outputs = verification.get("outputs") or []
    if verification.get("equivalent"):  # a change by the runtime itself, as deployed, is no error of the candidate
        outputs = [output for output in outputs if output.get("level") != "default"] or outputs
    if outputs:
        worst = max((figures.read_value(output, 0) for output in outputs), key=figures.badness)
        note = f"budget {scientific(worst.budget)}" if worst.error else "identical"
        note = "within the gate" if verification.get("gate") and worst.error and worst.passes else note
        yield Tile("worst output error", scientific(worst.error), note)
    inputs, values = (_number_of(verification.get(key)) for key in ("inputs", "values"))
    if inputs:
        yield Tile("sets of inputs", count(inputs), plural(values, "inner value") if values else "outputs alone")


def _number_of(value: Any) -> int:
    """A number, or the length of a list."""
    return value if isinstance(value, int) else len(value) if isinstance(value, list) else 0


def _of_bench(record: Record) -> Summary:
    entries = record["entries"]
    begun: set[str] = set()
    sentences: list[str] = []
    moods: list[Mood] = []
    for name, entry in zip(model_names(entries), entries, strict=True):
        ratio = figures.read_ratio(entry, name)
        if setting(entry) in begun and ratio is not None:
            moods.append(ratio.mood)
            sentences.append(f"{shown(name, 60)} on {setting(entry)}: {_said(ratio)}.")
        begun.add(setting(entry))
    tiles = [
        Tile("comparisons", count(len(moods))),
        Tile("faster", count(moods.count("good"))),
        Tile("no detectable change", count(moods.count("plain"))),
        Tile("slower", count(moods.count("bad"))),
    ]
    if len(sentences) > 8:
        sentences = [*sentences[:8], f"And {plural(len(sentences) - 8, 'further comparison')}, in the table."]
    kinds = set(moods)
    mood: Mood = "good" if kinds == {"good"} else "bad" if kinds == {"bad"} else "plain"
    names: dict[Mood, str] = {"good": "Faster in every comparison", "bad": "Slower in every comparison"}
    if not kinds:
        headline = "Latency, without a comparison"
    elif kinds == {"plain"}:
        headline = "No detectable change"
    else:
        headline = names.get(mood, "Faster or slower, depending on the model and where it runs")
    return Summary(mood, headline, sentences, tiles)


def _said(ratio: figures.Ratio) -> str:
    interval = f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
    if ratio.mood == "plain":
        chance = f"; chance alone reaches {ratio.noise[0]:.3f} to {ratio.noise[1]:.3f}" if ratio.noise else ""
        return f"no detectable change ({interval}{chance})"
    percent, word = abs(1 - ratio.middle) * 100, "less" if ratio.high < 1 else "more"
    return f"{percent:.3g} % {word} time than the baseline ({interval})"
