"""Latency of branchy networks as exported, folded by bnfold, and in the deploy form of their authors.

The networks are those of tests/toys/branchy_networks.py, built in the manner of their papers, or with --timm
architectures of timm, whose `reparameterize_model` makes the deploy form (`pip install timm`, with the torchvision that
was built for the installed PyTorch). Weights are random: latency does not depend on them. All forms of a network run
interleaved in one process, in random order within each round, by onnxruntime at its default optimisation level; a ratio
is the median of the ratios within rounds, with a 95 % bootstrap interval. Prints a section of docs/performance.md; with
--docs it writes it into the page.

    python scripts/benchmarks/bench_merge.py [--timm] [--rounds N] [--threads N] [--docs docs/performance.md]
        [NETWORK ...]
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import platform
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

import bnfold
from scripts.benchmarks.page import write_section
from tests.toys.branchy_networks import NETWORKS, deploy, trained

TIMM = ["repvgg_a0", "mobileone_s0", "mobileone_s1", "repvit_m0_9", "fastvit_t8", "repghostnet_050"]
SIZE = 224
WIDTH, DEPTH = 48, 4
"""Of the networks in the manner of their papers."""


def forms_of(name: str, *, is_timm: bool) -> tuple[nn.Module, nn.Module]:
    """A network in eval mode, with statistics as if it had been trained, and its deploy form."""
    if is_timm:
        import timm
        from timm.utils.model import reparameterize_model

        module = trained(timm.create_model(name, pretrained=False))
        return module, reparameterize_model(copy.deepcopy(module))
    module = trained(NETWORKS[name](width=WIDTH, depth=DEPTH))
    return module, deploy(copy.deepcopy(module))


def export(module: nn.Module) -> onnx.ModelProto:
    """With its BatchNorms, which the exporter folds by default."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(
            module, (torch.zeros(1, 3, SIZE, SIZE),), file, dynamo=False, training=mode, do_constant_folding=False
        )
    return onnx.load_from_string(file.getvalue())


def session(proto: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure(sessions: dict[str, onnxruntime.InferenceSession], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each form, round by round."""
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    feeds = {form: {each.get_inputs()[0].name: x} for form, each in sessions.items()}
    times: dict[str, list[float]] = {form: [] for form in sessions}
    order = np.random.default_rng(0)
    for step in range(rounds + 5):
        for form in order.permutation(list(sessions)):
            start = time.perf_counter()
            sessions[form].run(None, feeds[form])
            if step >= 5:
                times[form].append(1e3 * (time.perf_counter() - start))
    return {form: np.asarray(found) for form, found in times.items()}


def speedup(before: np.ndarray, after: np.ndarray) -> str:
    """The median of paired ratios with its interval."""
    ratios = before / after
    drawn = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def row(name: str, rounds: int, threads: int, *, is_timm: bool) -> str:
    exported, deployed = map(export, forms_of(name, is_timm=is_timm))
    forms = {
        "exported": exported,
        "unmerged": bnfold.fuse(exported, merge=False),
        "folded": bnfold.fuse(exported),
        "deployed": deployed,
    }
    times = measure({form: session(proto, threads) for form, proto in forms.items()}, rounds)
    counts = {form: sum(node.op_type == "Conv" for node in proto.graph.node) for form, proto in forms.items()}
    cells = [
        name,
        f"{counts['exported']} -> {counts['folded']} (deploy {counts['deployed']})",
        *(f"{np.median(times[form]):.1f}" for form in ("exported", "folded", "deployed")),
        *(speedup(times["exported"], times[form]) for form in ("unmerged", "folded", "deployed")),
    ]
    return f"| {' | '.join(cells)} |"


def section(networks: list[str], rounds: int, threads: int, *, is_timm: bool) -> str:
    head = ["network", "convolutions", "exported, ms", "bnfold, ms", "deploy form, ms"]
    head += ["`--no-merge`", "bnfold", "deploy form"]
    rows = []
    for name in networks:
        rows.append(row(name, rounds, threads, is_timm=is_timm))
        print(rows[-1], file=sys.stderr, flush=True)
    runtime = onnxruntime.__version__
    option, source = " --timm" if is_timm else "", f"in the manner of their papers, {WIDTH} channels wide at first"
    if is_timm:
        import timm

        source = f"of timm {timm.__version__}"
    command = f"python scripts/benchmarks/bench_merge.py{option} --rounds {rounds} --threads {threads}"
    return "\n".join(
        [
            f"## Networks with parallel branches, {'of timm' if is_timm else 'in the manner of their papers'}",
            "",
            f"Written by `{command} --docs docs/performance.md`.",
            f"Architectures {source};",
            "exported by PyTorch with their branches; one image of 224 x 224 in float32; "
            f"onnxruntime {runtime} at its default",
            f"level on {platform.machine()},",
            f"threads: {threads}. The deploy form is what the authors' own `reparameterize` leaves. Convolutions are",
            "those of the export, of the folded model and of the deploy form; times are medians; the last three",
            "columns are speedups over the export (of `bnfold fuse --no-merge`, of `bnfold fuse`, of the deploy form),",
            "as medians of paired ratios with a 95 % interval.",
            "",
            f"| {' | '.join(head)} |",
            "|---|---|---:|---:|---:|---|---|---|",
            *rows,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--timm", action="store_true", help="architectures of timm, which must be installed")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--docs", type=Path, help="write the section between its markers in this page")
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    networks = options.networks or (TIMM if options.timm else list(NETWORKS))
    text = section(networks, options.rounds, options.threads, is_timm=options.timm)
    print(text)
    if options.docs:
        write_section(options.docs, "branches of timm" if options.timm else "branches", text)


if __name__ == "__main__":
    main()
