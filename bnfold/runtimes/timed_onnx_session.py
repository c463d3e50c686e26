"""Sessions of ONNX Runtime for timings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnfold.errors import IncomparableError, MissingExtraError, one_line
from bnfold.runtimes.imported import import_onnxruntime
from bnfold.runtimes.inputs import Feeds
from bnfold.runtimes.onnx_runtime import PROVIDERS, register_custom_ops
from bnfold.runtimes.setting import Level, Setting

LEVELS = {
    Level.DISABLED: "ORT_DISABLE_ALL",
    Level.BASIC: "ORT_ENABLE_BASIC",
    Level.EXTENDED: "ORT_ENABLE_EXTENDED",
    Level.ALL: "ORT_ENABLE_ALL",
}

ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


def provider_names(provider: str) -> list[str]:
    """The full names of a provider, and of those that take the nodes which it does not know.

    Raises:
        MissingExtraError: onnxruntime, or the provider, is not installed.
    """
    available = import_onnxruntime().get_available_providers()
    known = {name: full for name, full in PROVIDERS.items() if full in available}
    wanted = known.get(provider.lower())
    if wanted is None:
        advice = "; pip install 'bnfold[gpu]'" if PROVIDERS.get(provider.lower()) in ON_CUDA else ""
        raise MissingExtraError(
            f"provider {provider!r} is not in the installed onnxruntime (it has: {', '.join(known)}){advice}"
        )
    after = ["CUDAExecutionProvider"] if wanted == "TensorrtExecutionProvider" else []
    after = [name for name in after if name in available]
    return list(dict.fromkeys([wanted, *after, "CPUExecutionProvider"]))


class OnnxSession:
    """An `InferenceSession` that never falls back to another provider silently."""

    def __init__(
        self,
        path: Path,
        setting: Setting,
        feeds: Sequence[Feeds],
        profile: Path | None = None,
        optimised: Path | None = None,
    ) -> None:
        runtime = import_onnxruntime()
        names = provider_names(setting.provider)
        options = _options(setting)
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self.path = path
        providers = [(name, _provider_options(name, setting)) for name in names]
        try:
            self.native = runtime.InferenceSession(path, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exception types share no base class but Exception
            raise IncomparableError(f"{path}: onnxruntime cannot load it ({one_line(str(error), 300)})") from error
        if self.native.get_providers()[0] != names[0]:
            raise MissingExtraError(
                f"provider {setting.provider!r} is installed but does not start here (its libraries or its device are "
                f"missing); onnxruntime would use {', '.join(self.native.get_providers())} instead"
            )
        self._outputs = [output.name for output in self.native.get_outputs()]
        self._feeds = list(feeds)
        self._bindings = [self._bind(feed) for feed in feeds] if names[0] in ON_CUDA else None

    @property
    def details(self) -> dict[str, Any]:
        """The providers in order, their options, and the clock."""
        clock = "wall clock, " + ("with device tensors, synchronised" if self._bindings else "InferenceSession.run")
        return {
            "engine": "onnxruntime",
            "providers": self.native.get_providers(),
            "provider_options": self.native.get_provider_options(),
            "spinning": False,
            "clock": clock,
        }

    def time(self, index: int) -> float:
        """Time one inference, in seconds."""
        try:
            if self._bindings is not None:
                return self._time_binding(self._bindings[index])
            start = time.perf_counter()
            self.native.run(self._outputs, self._feeds[index])
            return time.perf_counter() - start
        except Exception as error:  # as above
            raise IncomparableError(f"{self.path}: onnxruntime cannot run it ({one_line(str(error), 300)})") from error

    def _time_binding(self, binding: Any) -> float:
        start = time.perf_counter()
        self.native.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return time.perf_counter() - start

    def _bind(self, feed: Feeds) -> Any:
        """Bind inputs and outputs: inputs are copied to the device, outputs left there."""
        runtime = import_onnxruntime()
        binding = self.native.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, runtime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name in self._outputs:
            binding.bind_output(name, "cuda", 0)
        binding.synchronize_inputs()
        return binding


def _options(setting: Setting) -> Any:
    """The options of a session that does not burn cores while other models have their turn."""
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    level = LEVELS[setting.level or Level.ALL]
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    register_custom_ops(options, [Path(library) for library in setting.custom_ops])
    return options


def _provider_options(name: str, setting: Setting) -> dict[str, str]:
    """Device and precision of a provider. TensorRT's precision is left to the environment (NVIDIA_TF32_OVERRIDE)."""
    if name == "CUDAExecutionProvider":
        return {"device_id": "0", "use_tf32": str(int(setting.tf32))}
    return {"device_id": "0"} if name in ON_CUDA else {}
