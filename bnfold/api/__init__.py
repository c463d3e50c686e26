"""The public functions: what the command line and Python users call."""

from bnfold.api.deciding import Progress, Selection
from bnfold.api.differing import DiffResult, diff, diff_files
from bnfold.api.files import Checks, FileResult, fuse_file, inspect_file
from bnfold.api.folding import certify, fuse, plan
from bnfold.api.proving import ProofResult, prove_files

__all__ = [
    "Checks",
    "DiffResult",
    "FileResult",
    "Progress",
    "ProofResult",
    "Selection",
    "certify",
    "diff",
    "diff_files",
    "fuse",
    "fuse_file",
    "inspect_file",
    "plan",
    "prove_files",
]
