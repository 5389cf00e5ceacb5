"""The arithmetic of a run's bar: any job's stages, however they go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from rehost.catalog.job import JobSpec
from rehost.catalog.stages import USUAL_SECONDS, expected_seconds, stages_of
from rehost.run_progress import RunProgress

_STAGES = st.lists(st.sampled_from(list(USUAL_SECONDS)), min_size=1, unique=True).map(
    lambda names: [name for name in USUAL_SECONDS if name in names]
)
_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "report", "finish", "look"]),
        st.sampled_from([*USUAL_SECONDS, "nobody thought of it"]),
        st.integers(0, 2**60),
        st.integers(0, 2**60),
        st.floats(0, 10_000),
    )
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"source_id": "s-1", "region_id": "local", **fields})


@settings(deadline=None)
@given(_STAGES, st.dictionaries(st.sampled_from(list(USUAL_SECONDS)), st.floats(0, 1e6)), _EVENTS)
def test_the_bar_never_goes_back_and_is_never_full_before_the_end(
    stages: list[str], before: dict[str, float], events: list[tuple[str, str, int, int, float]]
) -> None:
    clock = Clock()
    bar = RunProgress(expected_seconds(stages, before), measured=bool(before), clock=clock)
    last = 0
    for what, stage, done, total, passed in events:
        clock.now += passed
        if what == "begin":
            bar.begin(stage)
        elif what == "report":
            bar.report(done, total)
        elif what == "finish":
            bar.finish()
        told = bar.figures()
        assert last <= told.percent <= 99
        assert told.eta_seconds is None or told.eta_seconds >= 0
        assert told.bytes_per_second is None or told.bytes_per_second >= 0
        assert (told.bytes_done is None) == (told.bytes_total is None)
        if told.bytes_done is not None and told.bytes_total is not None:
            assert told.bytes_done <= told.bytes_total
        last = told.percent


@settings(deadline=None)
@given(_STAGES, st.data())
def test_any_stages_end_at_the_same_place_and_none_of_them_jumps(stages: list[str], data: st.DataObject) -> None:
    clock = Clock()
    expected = expected_seconds(stages, {})
    bar = RunProgress(expected, clock=clock)
    whole = sum(expected.values())
    for stage in stages:
        tries = data.draw(st.integers(1, 3))
        before = bar.figures().percent
        for number in range(tries):
            bar.begin(stage)
            assert bar.figures().percent == before
            for tenth in range(1, 11):
                clock.now += 0.001
                bar.report(tenth * 100, 1000)
                now = bar.figures().percent
                # A tenth of a stage is a tenth of its part of the bar, or less.
                assert now - before <= 99 * expected[stage] / whole / (1 - _done(expected, stage) / whole) / 10 + 1
                before = now
                if number + 1 < tries and tenth == 5:
                    break
        bar.finish()
    assert bar.figures().percent == 99


def _done(expected: dict[str, float], stage: str) -> float:
    names = list(expected)
    return sum(expected[name] for name in names[: names.index(stage)])


def test_the_stages_are_those_that_the_job_asks_for() -> None:
    image = {"targets": {"image": {"boot_mode": "uefi"}}}
    assert stages_of(spec(**image), publishes=True) == (
        "preflight",
        "snapshot",
        "transfer",
        "build-disk",
        "verify-uefi",
    )
    container = {"targets": {"container_image": {"namespace": "shop", "repository": "web1"}}}
    unverified = spec(**container, verification={"enabled": False})
    assert stages_of(unverified, publishes=True)[3:] == ("build-container", "publish")
    assert stages_of(spec(**container), publishes=False)[3:] == ("build-container", "verify-container")
    blocks = {"block_replication": True, "system": {"partitions": [{"device": "0_1", "block": True}]}}
    assert stages_of(spec(targets={"image": {}}, disks=blocks), publishes=False)[2:] == (
        "transfer-blocks",
        "transfer",
        "build-disk",
        "verify-bios",
        "verify-uefi",
    )


def test_a_run_is_told_by_how_long_the_one_before_took() -> None:
    clock = Clock()
    stages = ("preflight", "snapshot", "transfer", "build-disk")
    bar = RunProgress(
        expected_seconds(stages, {"preflight": 2, "snapshot": 8, "transfer": 60, "build-disk": 30}),
        measured=True,
        clock=clock,
    )
    assert bar.figures().eta_seconds == 100
    bar.begin("preflight")
    clock.now = 2
    bar.finish()
    bar.begin("snapshot")
    clock.now = 6
    assert bar.figures().eta_seconds == 94
    clock.now = 10
    bar.finish()
    bar.begin("transfer")
    for second in range(1, 21):
        clock.now = 10 + second
        bar.report(second * 5_000_000, 200_000_000)  # 40 s in all: faster than before
    told = bar.figures()
    assert (told.bytes_done, told.bytes_total, told.bytes_per_second) == (100_000_000, 200_000_000, 5_000_000)
    assert told.eta_seconds == 20 + 30
    assert bar.seconds() == {"preflight": 2, "snapshot": 8}


def test_the_rate_is_that_of_the_last_ten_seconds_and_falls_where_nothing_comes() -> None:
    clock = Clock()
    bar = RunProgress(expected_seconds(("transfer",), {}), clock=clock)
    bar.begin("transfer")
    for second in range(30):
        clock.now = second
        bar.report(second * (1000 if second < 15 else 100) + (0 if second < 15 else 13_500), 100_000)
    assert bar.figures().bytes_per_second == 100
    clock.now = 39
    assert bar.figures().bytes_per_second == pytest.approx(50, abs=3)


def test_without_an_earlier_run_the_rest_is_told_by_the_pace_so_far() -> None:
    clock = Clock()
    expected = expected_seconds(("preflight", "transfer", "build-disk"), {})
    bar = RunProgress(expected, clock=clock)
    assert bar.figures().eta_seconds is None
    bar.begin("preflight")
    assert bar.figures().eta_seconds is None
    clock.now = 2 * expected["preflight"]  # twice as slow as usual
    bar.finish()
    assert bar.figures().eta_seconds == 2 * (expected["transfer"] + expected["build-disk"])


def test_a_stage_that_counts_no_bytes_is_seen_to_go_on() -> None:
    clock = Clock()
    bar = RunProgress(expected_seconds(("build-disk", "verify-bios"), {}), clock=clock)
    bar.begin("build-disk")
    bar.finish()
    seen = []
    bar.begin("verify-bios")
    for second in range(0, 200, 20):
        clock.now = second
        seen.append(bar.figures().percent)
    assert seen == sorted(set(seen))
    assert seen[-1] < 99
    bar.finish()
    assert bar.figures().percent == 99
