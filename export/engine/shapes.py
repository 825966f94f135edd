"""Optimization profiles as TensorRT has them: given to it, and read back for the record."""

from __future__ import annotations

from typing import Any

from edgevqa.export.engine.protocol import Job
from edgevqa.runtime.engines import Profile, ShapeRange
from edgevqa.runtime.errors import CheckFailed, EdgeVQAError


def add_profiles(builder: Any, config: Any, job: Job) -> list[Profile]:
    """Add the job's profiles, and give those that TensorRT then has.

    Raises `CheckFailed` where it refuses one, and `EdgeVQAError` where it has others than the job: the engine would refuse
    shapes that its record promises.
    """
    has: list[Profile] = []
    for number, profile in enumerate(job.profiles):
        made = builder.create_optimization_profile()
        for name, sides in profile.items():
            made.set_shape(name, tuple(sides.min), tuple(sides.opt), tuple(sides.max))
        if config.add_optimization_profile(made) < 0:
            raise CheckFailed(
                f"TensorRT takes no profile {number} of graph '{job.graph}': {_text(profile)}. Expected sizes with "
                "min <= opt <= max: look at --batch and --axis."
            )
        has.append({name: _read(made, name) for name in profile})
    count = int(config.num_optimization_profiles)
    if count != len(job.profiles) or has != job.profiles:
        raise EdgeVQAError(
            f"TensorRT has {count} profiles of graph '{job.graph}', not the {len(job.profiles)} that were given: "
            f"{'; '.join(map(_text, has))}. Report it with the command and TensorRT's version."
        )
    return has


def _read(made: Any, name: str) -> ShapeRange:
    least, usual, most = (list(map(int, side)) for side in made.get_shape(name))
    return ShapeRange(min=least, opt=usual, max=most)


def _text(profile: Profile) -> str:
    return ", ".join(f"{name} {sides.min}..{sides.opt}..{sides.max}" for name, sides in profile.items())
