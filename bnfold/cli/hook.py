"""``bnfold-inspect``: `inspect` for each of many files, as pre-commit calls a hook."""

from __future__ import annotations

import sys

from bnfold.cli.commands import main

MODELS = (".onnx", ".pt2")


def inspect_each() -> None:
    """Inspect each file as a command line of its own, with the same options, and exit with the largest exit code."""
    given = sys.argv[1:]
    models = [each for each in given if each.endswith(MODELS)]
    options = [each for each in given if each not in models]
    codes = [0]
    for model in models or [""] * bool(options):  # without a model, options like --help are answered all the same
        if len(models) > 1:
            print(f"{model}:", flush=True)
        sys.argv[1:] = ["inspect", *options, *filter(None, [model])]
        try:
            main()
        except SystemExit as error:
            codes.append(error.code if isinstance(error.code, int) else 1)
    sys.exit(max(codes))
