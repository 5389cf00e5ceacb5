"""Regions: their networks, and which work queue a vSwitch means."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rehost.regions.regions import region
from rehost.settings import Settings

_CONFIG = """
[regions.lab]
max_running_jobs = 3

[regions.lab.networks.vpc-1.vswitches]
vsw-a = "lab-a"
vsw-b = "default"

[regions.lab.networks.vpc-2.vswitches]
vsw-c = "lab-c"
"""


def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Settings:
    file = tmp_path / "rehost.toml"
    file.write_text(text)
    monkeypatch.setenv("REHOST_CONFIG", str(file))
    return Settings(home=tmp_path)


def test_a_vswitch_means_the_work_queue_of_the_workers_that_sit_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configured(tmp_path, monkeypatch, _CONFIG)
    lab = settings.regions["lab"]
    assert [lab.work_queue(id) for id in ("vsw-a", "vsw-c", None, "unknown")] == [
        "lab-a",
        "lab-c",
        "default",
        "default",
    ]
    assert [lab.vpc_of(id) for id in ("vsw-a", "vsw-c", "unknown")] == ["vpc-1", "vpc-2", None]
    assert settings.work_queues == ("lab-a", "lab-c")
    shown = region(settings, "lab")
    assert [(n.vpc_id, [v.id for v in n.vswitches]) for n in shown.networks] == [
        ("vpc-1", ["vsw-a", "vsw-b"]),
        ("vpc-2", ["vsw-c"]),
    ]
    assert region(settings, "local").networks == ()


@pytest.mark.parametrize(
    "text",
    [
        '[regions.lab.networks.a.vswitches]\nv = "q"\n[regions.lab.networks.b.vswitches]\nv = "q"\n',
        '[regions.lab.networks.a.vswitches]\nv = "no queue, this"\n',
        '[regions.lab.networks.a]\nvswitch = "q"\n',
    ],
    ids=["a vSwitch in two VPCs", "no name of a queue", "no vSwitches"],
)
def test_networks_that_say_nothing_sound_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with pytest.raises(ValidationError):
        configured(tmp_path, monkeypatch, text)
