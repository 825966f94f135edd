"""Opening a graph's engine: everything that can be checked without loading it is checked first."""

from __future__ import annotations

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import check_engine
from edgevqa.runtime.errors import ConfigError
from edgevqa.runtime.sessions.base import SessionOptions
from edgevqa.runtime.sessions.trt.choice import choose_engines, place_of
from edgevqa.runtime.sessions.trt.device import acquire_device, release_device
from edgevqa.runtime.sessions.trt.driver import load_bindings
from edgevqa.runtime.sessions.trt.engine import Engine
from edgevqa.runtime.sessions.trt.options import read_options
from edgevqa.runtime.sessions.trt.profiles import EngineInputs
from edgevqa.runtime.sessions.trt.session import EngineSession
from edgevqa.runtime.sessions.trt.toolkit import load_toolkit
from edgevqa.runtime.targets import Flavour


def open_engine(bundle: Bundle, variant: str, graph: str, options: SessionOptions, flavour: Flavour) -> EngineSession:
    """Load one graph's engine, of the set that fits this machine best. The caller closes the session.

    Raises `UnavailableError` without TensorRT, cuda-python, driver or GPU, `BundleError` for engines that are missing,
    damaged, stale or not for this machine, and `ConfigError` for wrong options.
    """
    if options.profile:
        raise ConfigError("The TensorRT backends cannot time their layers. Choose another with --backend.")
    spec = bundle.graph(variant, graph)
    chosen = read_options(options.provider_options)
    toolkit = load_toolkit(flavour, chosen.runtime)
    extra = "tensorrt-rtx" if flavour == "tensorrt-rtx" else "tensorrt"
    device = acquire_device(load_bindings(extra), chosen.device)
    try:
        key, record = choose_engines(bundle, variant, toolkit, place_of(toolkit, device.cuda.info), chosen.target)
        path = check_engine(bundle, key, graph, record)
        engine = Engine(toolkit, device, path, graph, record, chosen)
        engine.check_signature(path, spec.inputs, spec.outputs)
        takes = EngineInputs(
            graph=graph, target=record.target, specs=spec.inputs, profiles=record.graphs[graph].profiles
        )
        return EngineSession(engine, takes, spec.outputs, key, chosen)
    except BaseException:
        release_device(device)
        raise
