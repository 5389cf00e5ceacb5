"""Which stages a run of a job has, in order, and how long each is thought to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rehost.catalog.job import JobSpec
from rehost.catalog.rules import chosen

# Seconds, as they are to each other: seen with a small server of 1 GB. Only their shares count.
USUAL_SECONDS: dict[str, float] = {
    "preflight": 3,
    "snapshot": 5,
    "transfer-blocks": 40,
    "transfer": 40,
    "build-disk": 20,
    "build-container": 12,
    "verify-bios": 25,
    "verify-uefi": 30,
    "verify-container": 8,
    "publish": 5,
}
_FEW_FILES = 0.25  # of the usual time, where some of the volumes are copied by blocks
_LEAST_SECONDS = 0.2  # of a stage that took no time at all


def stages_of(spec: JobSpec, *, publishes: bool) -> tuple[str, ...]:
    """The stages that a run of this job has. `publishes`: its region has a registry.

    A disk image that turns out to boot by one firmware alone is tested by that one alone.
    """
    image, container = spec.targets.image, spec.targets.container_image
    boot_mode = (image.boot_mode or "both") if image else None
    verified = spec.verification.enabled
    wanted = {
        "preflight": True,
        "snapshot": True,
        "transfer-blocks": bool(chosen(spec)),
        "transfer": True,
        "build-disk": image is not None,
        "build-container": container is not None,
        "verify-bios": verified and boot_mode in ("bios", "both"),
        "verify-uefi": verified and boot_mode in ("uefi", "both"),
        "verify-container": verified and container is not None,
        "publish": publishes and container is not None,
    }
    return tuple(stage for stage in USUAL_SECONDS if wanted[stage])


def expected_seconds(stages: Sequence[str], before: Mapping[str, float]) -> dict[str, float]:
    """How long each stage is thought to take, in seconds.

    `before` is what each took in an earlier run of the job; empty: there was none, and the figures are good for shares
    alone. A stage that the earlier run did not have takes as long as the others make likely.
    """
    usual = {stage: USUAL_SECONDS.get(stage, 1.0) for stage in stages}
    if "transfer-blocks" in usual:
        usual |= {stage: usual[stage] * _FEW_FILES for stage in ("snapshot", "transfer") if stage in usual}
    known = {stage: max(seconds, _LEAST_SECONDS) for stage, seconds in before.items() if stage in usual}
    pace = sum(known.values()) / sum(usual[stage] for stage in known) if known else 1.0
    return {stage: known.get(stage, seconds * pace) for stage, seconds in usual.items()}
