"""Sessions of ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import CustomOpsError, IncomparableError, NoKernelError, one_line
from bnfold.runtimes.imported import import_onnxruntime
from bnfold.runtimes.inputs import Feeds
from bnfold.runtimes.stages import is_searching, stage
from bnfold.runtimes.suspect import find_node

NO_KERNEL = (
    r"Could not find an implementation for (?P<operator>\S+)",
    r"Type 'tensor\(\w+\)' of \w+ parameter \(.*\) of operator \((?P<operator>\w+)\)",
)
"""Messages of the runtime about operators that it has only for other types or opsets."""

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "acl": "ACLExecutionProvider",
    "cann": "CANNExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "nvtensorrtrtx": "NvTensorRTRTXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "rknpu": "RknpuExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "vsinpu": "VSINPUExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""The names of execution providers on the command line."""

REFERENCE = "reference"
"""The name of the reference evaluator of onnx beside them, where models are compared."""


@dataclass(frozen=True)
class Strictness:
    """A default of a provider that is more than rounding of float32.

    Attributes:
        what: the name of the default.
        options: provider options that turn it off for a verdict.
    """

    what: str
    options: dict[str, str]


STRICT = {"cuda": Strictness("TF32", {"use_tf32": "0"})}
"""TF32 keeps ten bits of a number."""


def check_provider(provider: str) -> None:
    """Check that a provider is installed.

    Raises:
        IncomparableError: the provider is not installed, or is unknown.
        MissingExtraError: onnxruntime is not installed.
    """
    available = _module().get_available_providers()
    if provider not in PROVIDERS:
        raise IncomparableError(f"provider {provider!r}: unknown (there are: {', '.join([*PROVIDERS, REFERENCE])})")
    if PROVIDERS[provider] not in available:
        installed = [name for name, full in PROVIDERS.items() if full in available]
        raise IncomparableError(
            f"provider {provider!r}: the installed onnxruntime does not have it (it has: {', '.join(installed)})"
        )


class OnnxSession:
    """A session that is ready to run.

    Args:
        model: a file, or the bytes of one.
        label: the name of the model in messages.
        folder: the folder of the external data, where `model` is bytes.
        provider: the execution provider.
        is_optimised: whether it runs at the runtime's default level of optimisation, or with none.
        is_strict: whether the defaults in `STRICT` are turned off.
        custom_ops: libraries of custom operators.

    Raises:
        NoKernelError: the runtime has no kernel for one of its operators.
        CustomOpsError: the runtime does not take a library.
        IncomparableError: the provider is not installed, or the runtime does not take the model.
    """

    def __init__(
        self,
        model: Path | bytes,
        label: str,
        *,
        folder: Path | None = None,
        provider: str = "cpu",
        is_optimised: bool = False,
        is_strict: bool = True,
        custom_ops: Sequence[Path] = (),
    ) -> None:
        onnxruntime = _module()
        check_provider(provider)
        options = onnxruntime.SessionOptions()
        if not is_optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # several sessions are alive at once
        is_kept = is_searching()
        if is_kept and isinstance(model, Path):
            folder, model = model.parent, model.read_bytes()
        if folder is not None and isinstance(model, bytes):
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder.resolve())
            )
        settings = STRICT[provider].options if is_strict and provider in STRICT else {}
        self._providers = [(PROVIDERS[provider], settings)]
        self._options, self._model = options, model if is_kept else None
        self._label, self._provider = label, PROVIDERS[provider]
        with stage(label, "loading", "onnxruntime", lambda seconds: self._find_node(self._create, seconds)):
            register_custom_ops(options, custom_ops)
            try:
                self._session = self._create(model)
            except Exception as error:  # onnxruntime's exception types share no base class but Exception
                is_kernel = any(re.search(pattern, str(error)) for pattern in NO_KERNEL)
                kind = NoKernelError if is_kernel else IncomparableError
                raise kind(f"{label}: onnxruntime cannot load it ({one_line(str(error), 300)})") from error
        self._session.disable_fallback()

    def _create(self, model: Path | bytes) -> Any:
        return _module().InferenceSession(model, self._options, providers=self._providers)

    def _find_node(self, attempt: Callable[[bytes], object], seconds: float) -> str | None:
        assert isinstance(self._model, bytes)
        return find_node(onnx.load_model_from_string(self._model), attempt, seconds)

    def nodes_elsewhere(self) -> int:
        """The number of nodes that the provider handed back to the CPU."""
        assigned = self._session.get_provider_graph_assignment_info()
        return sum(len(partition.get_nodes()) for partition in assigned if partition.ep_name != self._provider)

    def outputs(self) -> list[str]:
        """The names of the outputs, in order."""
        return [output.name for output in self._session.get_outputs()]

    def types(self) -> dict[str, int]:
        """The element type of each output that is a tensor, as in `onnx.TensorProto.DataType`."""
        kinds = {output.name: output.type for output in self._session.get_outputs()}
        return {
            name: onnx.TensorProto.DataType.Value(kind.removeprefix("tensor(").removesuffix(")").upper())
            for name, kind in kinds.items()
            if kind.startswith("tensor(")
        }

    def __call__(self, feeds: Feeds, fetch: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Run one inference, for the outputs named in `fetch`.

        Raises:
            IncomparableError: the runtime cannot do it.
        """
        given = {name: _handed_over(array) for name, array in feeds.items()}

        def attempt(part: bytes) -> None:
            self._create(part).run(None, given)

        with stage(self._label, "running", "onnxruntime", lambda seconds: self._find_node(attempt, seconds)):
            try:
                return [np.asarray(array) for array in self._session.run(list(fetch), given)]
            except Exception as error:  # no common base class here either
                raise IncomparableError(
                    f"{self._label}: onnxruntime cannot run it ({one_line(str(error), 300)})"
                ) from error


def register_custom_ops(options: Any, libraries: Sequence[Path]) -> None:
    """Register libraries of custom operators with the options of a session.

    Raises:
        CustomOpsError: the runtime does not take one of them.
    """
    for library in libraries:
        try:
            options.register_custom_ops_library(str(library.absolute()))
        except Exception as error:  # as for sessions
            said = one_line(str(error), 300)
            raise CustomOpsError(f"{library}: onnxruntime cannot load it as custom operators ({said})") from error


def _handed_over(array: npt.NDArray[Any]) -> Any:
    """An array as the runtime takes it. For bfloat16, which numpy does not know, the type must be named."""
    if array.dtype.kind != "V":
        return array
    return _module().OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), onnx.TensorProto.BFLOAT16)


def _module() -> Any:
    return import_onnxruntime("pip install 'bnfold[cpu]', or use --no-verify")
