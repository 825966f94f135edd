"""What a build will do, settled and checked before it starts: variant, options, profiles, memory."""

from __future__ import annotations

import msgspec

from edgevqa.export.engine.axes import check_axes
from edgevqa.export.engine.capabilities import check_dla, check_gpu, check_products, settled
from edgevqa.export.engine.choice import choose_buildable
from edgevqa.export.engine.flavours import Toolkit, load_toolkit, refuse_impossible
from edgevqa.export.engine.options import BuildOptions
from edgevqa.export.engine.profiles import axis_ranges, graph_profiles
from edgevqa.export.engine.timing import check_timing_cache
from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.engines import Profile, here
from edgevqa.runtime.machine import Machine, read_machine
from edgevqa.runtime.manifest import VariantSpec
from edgevqa.runtime.questions import Questions


class BuildPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One build. The options name the compute capabilities that are built for, where TensorRT-RTX builds."""

    variant: str
    spec: VariantSpec
    options: BuildOptions
    toolkit: Toolkit
    profiles: dict[str, list[Profile]]
    machine: Machine

    @property
    def key(self) -> str:
        """The bundle's name of the engines."""
        return f"{self.options.target}/{self.variant}"


def make_plan(bundle: Bundle, options: BuildOptions) -> BuildPlan:
    """Raises what `build` raises before it starts."""
    variant = choose_buildable(bundle, options)
    spec = bundle.variant(variant)
    toolkit = load_toolkit(options.row)
    refuse_impossible(options, toolkit)
    check_timing_cache(options.timing_cache)
    machine = read_machine()
    check_gpu(options, variant, spec.numerics, here(machine).compute_capability)
    options = settled(options, spec.numerics, toolkit)
    check_products(options.compute_capabilities, variant, spec)
    main = Questions.of(bundle).main
    template = None if main is None else main.template_tokens
    check_axes(bundle.manifest, spec.graphs, options, template=template)
    ranges = axis_ranges(bundle.manifest, spec.graphs, options, template=template)
    profiles = {name: graph_profiles(name, graph, ranges) for name, graph in spec.graphs.items()}
    check_dla(options, variant, spec.numerics, profiles)
    bundle.require_files(variant)
    return BuildPlan(variant=variant, spec=spec, options=options, toolkit=toolkit, profiles=profiles, machine=machine)
