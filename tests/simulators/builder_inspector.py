"""What the builder simulator's engines are after the build: they can be loaded where there is a GPU, and inspected."""

from __future__ import annotations

import json
from typing import Any

from tests.simulators.builder_types import LayerInformationFormat, Strict, takes
from tests.simulators.tensorrt_types import ExecutionContextAllocationStrategy, ILogger, Severity

Shape = tuple[int, ...]


def runtime_class(module: Any) -> Any:
    class Runtime(Strict):
        """Loads what was built, where there is a GPU; the engine can only be inspected."""

        num_DLA_cores = property(lambda self: module.settings.dla_cores)
        engine_host_code_allowed: bool
        DLA_core: int
        logger: Any

        def __init__(self, logger: ILogger) -> None:
            takes("Runtime", logger, ILogger)
            if module.settings.layers is None and not module.rtx:
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            kinds: dict[str, tuple[type, ...]] = {"engine_host_code_allowed": (bool,), "DLA_core": (int,)}
            super().__init__(kinds, {"engine_host_code_allowed": False, "DLA_core": 0, "logger": logger})

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Inspected | None:
            told = module.builds[-1]
            host_code = "VERSION_COMPATIBLE" in told.flags and not self.engine_host_code_allowed
            other_core = told.device == "DLA" and told.dla_core != self.DLA_core
            if module.settings.layers is None or host_code or other_core:
                self.logger.log(Severity.ERROR, "the engine cannot be loaded")
                return None
            return Inspected(module, module.settings.layers)

    return Runtime


class Context:
    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self.shapes[name] = shape
        return True


class Inspected:
    """An engine that can be asked what it is made of; types are told where the shapes are known."""

    def __init__(self, module: Any, layers: str) -> None:
        self.module, self.layers = module, layers

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context | None:
        takes("create_execution_context", strategy, ExecutionContextAllocationStrategy)
        return None if "STRIP_PLAN" in self.module.builds[-1].flags else Context()

    def create_engine_inspector(self) -> Inspector:
        return Inspector({"execution_context": (Context,)}, {"execution_context": None, "engine": self})


class Inspector(Strict):
    engine: Inspected
    execution_context: Context | None

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        takes("get_engine_information", format, LayerInformationFormat)
        layers = json.loads(self.engine.layers)["Layers"]
        told = self.engine.module.builds[-1]
        if told.verbosity != "DETAILED":
            return json.dumps({"Layers": [layer["Name"] for layer in layers], "Bindings": []})
        known = self.execution_context is not None and set(self.execution_context.shapes) == set(told.profiles[0])
        for layer in layers if not known else ():
            for tensor in layer["Outputs"]:
                tensor["Format/Datatype"] = "N/A due to dynamic shapes"
        return json.dumps({"Layers": layers, "Bindings": []})
