"""The JSON documents that pipelines read, as types. Keys are only ever added.

`schema/` beside this module has them as JSON schemas, which `scripts/tools/make_schemas.py` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NotRequired, TypedDict, final

SCHEMA: Final = "bnfold/1"

Record = Mapping[str, Any]
"""A document of any command as a renderer meets it that takes old ones from files: keys may be missing."""


class Cost(TypedDict):
    """What a BatchNorm costs where it stays; null where that is not known.

    `elements` are those of its output for one sample, by declared sizes: each has one multiplication and one
    addition, in a pass over memory of their own unless the runtime fuses it.
    """

    parameters: int | None
    elements: int | None


class Folded(TypedDict):
    """A BatchNorm, or another per-channel affine, that folds."""

    batchnorm: str
    scope: str
    status: Literal["folded"]
    direction: str
    into: list[str]
    through: list[str]
    rounding: float | None
    cost: NotRequired[Cost]


class Kept(TypedDict):
    """A BatchNorm that stays, with the reason."""

    batchnorm: str
    scope: str
    status: Literal["kept"]
    reason: str
    detail: str
    at: str
    advice: str | None
    cost: NotRequired[Cost]


class Merged(TypedDict):
    """Linear operators that become one."""

    into: str
    scope: str
    branches: list[str]
    through: list[str]
    rounding: float | None


class Warned(TypedDict):
    """Something wrong with the statistics of a BatchNorm, or with what the file says of a value; it blocks no fold."""

    batchnorm: str | None
    value: str | None
    scope: str
    kind: str
    channels: list[int]
    detail: str


class BatchNorms(TypedDict):
    """How many BatchNorms there are, fold and stay."""

    found: int
    folded: int
    kept: int


class Affines(TypedDict):
    """How many other per-channel affines fold."""

    folded: int


class Change(TypedDict):
    """A size before and after; null where nothing is written."""

    before: int
    after: int | None


class Created(TypedDict):
    """Elements that are not finite in the candidate alone, and in the reference alone."""

    created: int
    lost: int


class Value(TypedDict):
    """An inner value, at the worst of all inputs."""

    name: str
    equivalent: bool
    reason: str | None
    error: float | None
    budget: float | None
    excess: float | None
    test: str
    input: str
    snr_db: float | None
    nan: Created
    inf: Created


class Output(Value):
    """An output, at one place and optimisation level."""

    provider: str
    level: Literal["default", "disabled"]
    ulp: int | None
    argmax_agreement: float | None
    argmax_margin: float | None


class Sample(TypedDict):
    """One set of inputs."""

    label: str
    shapes: dict[str, list[int]]


class Divergence(TypedDict):
    """The earliest value that differs, at its worst element."""

    name: str
    node: str
    channel: int | None
    position: list[int]
    expected: Any
    actual: Any
    error: float | None
    budget: float | None
    input: str
    reason: str


class SmokeRun(TypedDict):
    """What became of running original and result once; `error` is relative to an output's largest value."""

    ran: bool
    runtime: str
    error: float | None
    difference: str | None
    seconds: float


class Gate(TypedDict):
    """Fixed conditions on the outputs, over all inputs together; null where one was not asked for."""

    min_snr: float | None
    min_argmax: float | None
    atol: float | None
    rtol: float | None


class Verification(TypedDict):
    """Whether two models are equivalent, and what shows it."""

    equivalent: bool
    inputs: int
    samples: list[Sample]
    outputs: list[Output]
    values: list[Value]
    first_divergence: Divergence | None
    findings: list[str]
    interface: NotRequired[list[str]]
    gate: NotRequired[Gate]
    smoke: NotRequired[SmokeRun]


class Obligations(TypedDict):
    """How many obligations of each kind were met."""

    wiring: int
    weights: int
    carriers: int
    merges: int


class Proof(TypedDict):
    """Whether a result is proved to be its original, and by how much; `failure` is the first obligation not met.

    It is `identical` where both are the same bytes, and nothing else had to be proved. The shapes of the values that
    are `assumed` are as a run of the model had them.
    """

    proved: bool
    obligations: Obligations
    folds: int
    weights: int
    worst_ulp: float
    failure: str | None
    identical: bool
    assumed: list[str]
    seconds: float


class Provenance(TypedDict):
    """Where a document comes from: the moment, the command line, the versions, and SHA-256 of each model's files.

    It is null for a file that cannot be read. `seed` is that of the drawn inputs, null where none are drawn.
    """

    date: str
    command: list[str]
    python: str
    platform: str
    libraries: dict[str, str]
    files: dict[str, str | None]
    seed: int | None


class Failure(TypedDict):
    """Why there is no answer: the class of the error, and its message."""

    kind: str
    message: str


@final
class ErrorDocument(TypedDict):
    """What a command says that could not be done; `exit_code` is 2 or 3."""

    schema: Literal["bnfold/1"]
    command: Literal["fuse", "inspect", "verify", "bench", "diff"]
    error: Failure
    exit_code: int
    provenance: NotRequired[Provenance]


class DriftOf(TypedDict):
    """A BatchNorm beside the data that it reads, at the channels that drift most; `still` channels never vary.

    `shift` is the mean of the data less the running mean, in running standard deviations; `chance` is how large that
    may be by chance, null for a single sample. `ratio` is the variance of the data over the running variance.
    """

    batchnorm: str
    scope: str
    channels: int
    channel: int
    shift: float
    chance: float | None
    ratio_channel: int
    ratio: float
    still: list[int]


class DriftDocument(TypedDict):
    """Whether data look as the running statistics say; `largest` is the largest shift that chance does not explain."""

    samples: int
    untrained: bool
    left_out: int
    largest: float
    limit: float | None
    batchnorms: list[DriftOf]


@final
class FileDocument(TypedDict):
    """What `fuse` did to a file, or what `inspect` says that it would do.

    Asked for, `bench` has the timings of the result beside its original; null where they cannot be run.
    """

    schema: Literal["bnfold/1"]
    command: Literal["fuse", "inspect"]
    model: str
    output: str | None
    batchnorms: BatchNorms
    affines: Affines
    outcomes: list[Folded | Kept]
    affine_outcomes: list[Folded]
    merges: list[Merged]
    warnings: list[Warned]
    nodes: Change
    bytes: Change
    seconds: float
    verification: Verification | None
    proof: NotRequired[Proof]
    fail_on_foldable: NotRequired[bool]
    drift: NotRequired[DriftDocument]
    bench: NotRequired[BenchDocument | None]
    provenance: NotRequired[Provenance]


@final
class VerifyDocument(Verification):
    """What `verify` found."""

    schema: Literal["bnfold/1"]
    command: Literal["verify"]
    reference: str
    candidate: str
    seconds: float
    proof: NotRequired[Proof]
    provenance: NotRequired[Provenance]


@final
class Remark(TypedDict):
    """One line of ``--remarks``: what became of a BatchNorm, another affine or a merge, or what is worth a look.

    As in LLVM's optimisation remarks, `passed` is what was done (or would be, by `inspect`), `missed` what was not, and
    `analysis` neither. `into` and `through` are names of nodes; `reason`, `at` and `advice` are those of a refusal.
    """

    schema: Literal["bnfold/1"]
    kind: Literal["passed", "missed", "analysis"]
    name: Literal["fold", "merge", "statistics", "declaration"]
    model: str
    node: str
    scope: str
    is_batchnorm: bool
    direction: str | None
    into: list[str]
    through: list[str]
    reason: str | None
    at: str | None
    message: str
    advice: str | None
    cost: Cost | None


class BenchModel(TypedDict):
    """A model that was timed; null where a module in memory does not say."""

    model: str
    engine: str
    sha256: str | None
    file_bytes: int | None
    nodes: int | None
    batchnorms: int | None


class BenchEntry(TypedDict):
    """One model under one provider and level; ratios are to the first model."""

    model: str
    index: int
    provider: str
    level: str | None
    engine: str
    verdict: str | None
    median_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    noise_low: float
    noise_high: float
    visible_change: float | None
    gate: str | None
    runs_same_kernels: bool | None
    session_ms: float | None
    session_ratio: float
    session_ratio_low: float
    session_ratio_high: float
    first_run_ms: float | None
    peak_bytes: int | None
    memory_before_bytes: int | None
    file_bytes: int | None
    nodes: int | None
    batchnorms: int | None
    details: dict[str, Any]
    placement: dict[str, int] | None
    handed_back: list[str]
    samples_ms: list[list[list[float]]]
    session_samples_ms: list[float]
    cold_session_samples_ms: list[float] | None
    cold_first_run_samples_ms: list[float] | None


class Noise(TypedDict):
    """The baseline beside itself, under one provider and level."""

    provider: str
    level: str | None
    ratio: float
    ratio_low: float
    ratio_high: float
    samples_ms: list[list[list[float]]]
    session_samples_ms: list[float]


class Method(TypedDict):
    """How the timings were made and judged."""

    threads: int
    warmup: int
    rounds: int
    seconds: float | None
    require: float | None
    no_slower: bool
    rounds_per_sitting: int
    starts: int
    seed: int
    confidence: float
    looks: list[float]
    precision: float
    resamples: int
    tf32: bool
    compiled: bool


class Fingerprint(TypedDict):
    """The machine, the libraries, and what may disturb a timing."""

    cpu: str
    cores: int | None
    cores_available: int
    memory_bytes: int | None
    governor: str | None
    gpus: list[dict[str, str]]
    platform: str
    machine: str
    python: str
    libraries: dict[str, str]
    environment: dict[str, str]
    load_before: float | None
    load_after: float | None


@final
class BenchDocument(TypedDict):
    """What `bench` measured."""

    schema: Literal["bnfold/1"]
    command: Literal["bench"]
    baseline: str
    models: list[BenchModel]
    entries: list[BenchEntry]
    noise: list[Noise]
    inputs: list[dict[str, str]]
    method: Method
    fingerprint: Fingerprint
    warnings: list[str]
    seconds: float
    provenance: NotRequired[Provenance]


class NodeOf(TypedDict):
    """A node of one of two models."""

    name: str
    scope: str
    operator: str


class Around(TypedDict):
    """Nodes in the order of the data; `role` says what one is: "batchnorm", "into", "beside"."""

    name: str
    operator: str
    role: Literal["batchnorm", "into", "beside"]


class FateOf(TypedDict):
    """Where a BatchNorm of A is in B.

    The nodes of B in `into` do it now; those in `others` are the same, so that nothing tells them apart. `bnfold` says
    what bnfold would do with one that is still there. `before` and `after` are the nodes around it in A and in B.
    """

    batchnorm: str
    scope: str
    status: Literal["kept", "folded", "merged", "decomposed", "depthwise", "constant", "identity", "unread", "unknown"]
    into: list[str]
    operators: list[str]
    direction: str | None
    others: list[str]
    detail: str
    bnfold: Folded | Kept | None
    before: list[Around]
    after: list[Around]


class ChangedNode(TypedDict):
    """A node of both models; `other` is its name in B."""

    name: str
    scope: str
    other: str
    changes: list[str]


class NodesOf(TypedDict):
    """The nodes of A and B: how many there are, and those that are not the same in both."""

    before: int
    after: int
    gone: list[NodeOf]
    new: list[NodeOf]
    changed: list[ChangedNode]


class ChangedWeight(TypedDict):
    """A tensor that both store; `largest` is the largest difference over the largest value, null for other shapes."""

    name: str
    largest: float | None
    detail: str


class WeightsOf(TypedDict):
    """The tensors of A and B that are not the same in both, by name."""

    changed: list[ChangedWeight]
    gone: list[str]
    new: list[str]


@final
class DiffDocument(TypedDict):
    """What `diff` found. Models that are not `related` have no weights, and few names, in common."""

    schema: Literal["bnfold/1"]
    command: Literal["diff"]
    reference: str
    candidate: str
    identical: bool
    related: bool
    statuses: dict[str, int]
    fates: list[FateOf]
    nodes: NodesOf
    weights: WeightsOf
    interface: list[str]
    seconds: float
    fail_on_difference: NotRequired[bool]
    provenance: NotRequired[Provenance]


class FleetCounts(TypedDict):
    """How many models there were, and how they ended; `unchanged` ones were done by an earlier run.

    `no` counts clear answers (exit code 1), `refused` outputs that exist (2), `failed` models without an answer (3).
    `left_out` were not begun, since the run was to stop at the first model that did not end well.
    """

    found: int
    well: int
    no: int
    refused: int
    failed: int
    unchanged: int
    left_out: int


class FleetModel(TypedDict):
    """A model of a fleet that is named: by its time, or by its size."""

    source: str
    seconds: NotRequired[float]
    bytes: NotRequired[int]


class FleetFailure(TypedDict):
    """A model that did not end well, and why."""

    source: str
    message: str


class FleetRow(TypedDict):
    """A model of a fleet in a report; `report` is the page of its own, relative to the report."""

    source: str
    output: str | None
    exit_code: int
    message: str | None
    found: int | None
    folded: int | None
    kept: int | None
    bytes: int
    seconds: float
    peak_bytes: int | None
    worker: str | None
    report: str | None


@final
class FleetDocument(TypedDict):
    """What became of the models of a fleet. `rows` are in reports alone, and `omitted` says how many are not."""

    schema: Literal["bnfold/1"]
    command: Literal["fleet"]
    task: Literal["fuse", "inspect", "verify", "bench"]
    out: str | None
    ledger: str | None
    exit_code: int
    counts: FleetCounts
    batchnorms: BatchNorms
    reasons: dict[str, int]
    bytes: Change
    seconds: float
    model_seconds: float
    peak_bytes: int
    workers: int
    slowest: list[FleetModel]
    largest: list[FleetModel]
    failures: list[FleetFailure]
    rows: NotRequired[list[FleetRow]]
    omitted: NotRequired[int]
    provenance: NotRequired[Provenance]


@final
class LedgerLine(TypedDict):
    """A line of the ledger of a fleet: a model, what was done with it, and the record of the single command.

    `files` has SHA-256 of all files of the model and of its output; `stamps` tell whether they were touched since.
    """

    schema: Literal["bnfold/1"]
    command: Literal["fuse", "inspect", "verify", "bench"]
    source: str
    reference: str | None
    output: str | None
    relative: str
    options: list[str]
    version: str
    exit_code: int
    files: dict[str, str | None]
    stamps: dict[str, str]
    bytes: int
    seconds: float
    peak_bytes: int | None
    worker: str | None
    attempts: int
    finished: str
    record: FileDocument | VerifyDocument | BenchDocument | ErrorDocument


Document = FileDocument | VerifyDocument | BenchDocument | DiffDocument | FleetDocument

AnyDocument = Document | ErrorDocument


COMMANDS: dict[str, Any] = {
    "fuse": FileDocument,
    "inspect": FileDocument,
    "verify": VerifyDocument,
    "bench": BenchDocument,
    "diff": DiffDocument,
    "fleet": FleetDocument,
}
"""The type of each command's document."""

SCHEMAS: dict[str, Any] = {**COMMANDS, "error": ErrorDocument, "remark": Remark, "ledger": LedgerLine}
"""All of them, what takes their place where a command ends with an error, and lines of ``--remarks`` and a ledger."""
