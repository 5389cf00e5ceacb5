"""The console in a real browser on real services, by the keyboard: from a server to the screen of its copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from demo.client import Client, rehost_services
from demo.registry import free_port
from demo.server import server_tree
from rehost.catalog.catalog import Catalog
from rehost.ids import new_id
from rehost.run import find, run
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Disk, Inventory, Partition, Record
from rehost.verification.report import Check, Failure, VerificationReport
from tests.support.browser import Browser, browser
from tests.support.pages import Page

_HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202egnp\x1b[31m"
_PHONE, _TABLET, _NARROW, _WIDE = 360, 800, 1030, 1280
# Most of a Debian kernel's modules, which a virtual machine does not load; its initramfs has those that it boots with.
_NOT_FOR_A_BOOT = (
    *(
        f"./usr/lib/modules/*/kernel/drivers/{kind}"
        for kind in ("gpu", "media", "infiniband", "scsi", "iio", "staging")
    ),
    *(f"./usr/lib/modules/*/kernel/drivers/net/{kind}" for kind in ("ethernet", "wireless", "usb", "can", "wwan")),
    "./usr/lib/modules/*/kernel/sound",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    environment = {
        "REHOST_HOME": str(home),
        "REHOST_API_PORT": str(free_port()),
        "REHOST_PREFECT_PORT": str(free_port()),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with rehost_services(environment):
            yield f"http://127.0.0.1:{environment['REHOST_API_PORT']}"


@pytest.fixture(scope="module")
def window(address: str) -> Iterator[Browser]:
    with browser(address) as found:
        found.wide(_WIDE)
        yield found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A server's tree without a kernel: a disk image of it cannot be built."""
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    (root / "etc" / "hostname").write_text("web1\n")
    (root / "bin").mkdir()
    shutil.copy("/bin/true", root / "bin" / "sh")  # a program tells the architecture
    return root


def registered(window: Browser, root: Path, name: str) -> None:
    """Register a tree as a source, by the keyboard."""
    window.open("/")
    window.enter("Register the first source" if "Register the first" in window.text else "Register a source")
    window.tab_to("kind-ssh")
    window.press(Keys.ARROW_RIGHT)
    window.type_into("Folder", str(root))
    window.type_into("Name", name)
    window.enter("Register")
    assert "The source is registered" in window.text


def test_by_the_keyboard_alone_a_server_is_registered_and_a_job_planned_made_and_followed_to_its_error(
    window: Browser, address: str, tree: Path
) -> None:
    registered(window, tree, "web1")
    window.enter("New job")
    window.type_into("Name", "web1-move")
    window.tab_to("mode-now")
    window.press(Keys.ARROW_DOWN)  # when somebody starts it
    window.enter("Plan")
    assert "Nothing was stored, nothing was started" in window.text
    window.enter("Create")
    assert "The job web1-move is made" in window.text
    window.enter("Start")
    assert "web1-move is started" in window.text
    window.wait_for_text("Build.NoKernel", 240)  # the page follows by itself
    error = Client(address).get("/v1/jobs?name=web1-move")["items"][0]["error"]
    assert error["message"] in window.text and error["remedy"] in window.text
    window.enter("Log")
    log = window.path

    def told() -> bool:  # Prefect takes a run's last lines some seconds after it has ended
        window.open(log)
        return "Build.NoKernel" in window.text

    window.wait("line of the log", told, 120)
    assert window.complaints() == []


@pytest.mark.qemu
@pytest.mark.root
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    any(find(p) is None for p in ("qemu-system-x86_64", "qemu-img", "grub-mkimage", "mmdebstrap")),
    reason="QEMU, GRUB's tools or mmdebstrap are not installed",
)
@pytest.mark.skipif(os.geteuid() != 0, reason="the tree of a server is unpacked with its owners")
def test_a_server_is_registered_moved_and_followed_to_the_screen_of_its_copy(window: Browser, tmp_path: Path) -> None:
    root = tmp_path / "shop"
    root.mkdir()
    left_out = [f"--exclude={pattern}" for pattern in _NOT_FOR_A_BOOT]
    run(["tar", "--extract", f"--file={server_tree().tar}", f"--directory={root}", *left_out], timeout=600)
    try:
        registered(window, root, "shop")
        window.enter("New job")
        window.type_into("Name", "shop-move")
        window.tab_to("Boots by")
        window.press(Keys.ARROW_DOWN)  # one test boot, not two
        window.enter("Create")
        assert "The job shop-move is made" in window.text
        window.wait_for_text("The images exist and passed", 1500)
    finally:
        shutil.rmtree(root)
    assert "Finished" in window.text and "succeeded" in window.text
    window.tab_to("Verify")  # what is allowed now is a button
    subject = window.driver.find_element("css selector", "[aria-labelledby=verifications-head] th a").text
    window.enter(subject)
    picture = "const i = document.querySelector('img.screen'); return i.complete && i.naturalWidth"
    assert window.wait("picture", lambda: window.run(picture)) >= 640
    assert "kernel" in window.text and "root mounted" in window.text
    window.enter("Jobs")
    window.enter("Images")
    window.enter("shop-move")
    assert "Download" in window.text
    assert Page(window.source).faults() == [] and window.complaints() == []


def test_without_scripts_all_works_and_a_page_of_a_run_is_loaded_anew_by_itself(address: str, tree: Path) -> None:
    with browser(address, scripts=False) as window:
        window.wide(_WIDE)
        registered(window, tree, "plain1")
        window.enter("New job")
        window.type_into("Name", "plain1-move")
        window.enter("Create")
        window.wait_for_text("Build.NoKernel", 240)


def image_that_failed(home: Path, job_id: str) -> tuple[str, str]:
    """An image of the job that failed its test, and that test; as hostile as they can be."""
    facts = {"index": 0, "role": "system", "format": "qcow2", "virtual_size": 1 << 34, "file_size": 1 << 30}
    disk = {**facts, "sha256": "ab" * 32, "location": f"/srv/{'long' * 60}/disk-0.qcow2"}
    report = VerificationReport(
        subject="s" * 200,
        status="failed",
        checks=(Check(name=_HOSTILE, status="failed", detail="d" * 300), Check(name="kernel", status="passed")),
        script_output=_HOSTILE * 20,
        error=Failure(code="Boot.KernelPanic", message="m" * 300, remedy=_HOSTILE, retryable=True),
    )
    with Catalog.open(Settings(home=home)) as catalog:
        run = catalog.begin_run(job_id, kind="manual")
        record = ImageFacts(disks=(disk,), os=_HOSTILE, boot_modes=("bios",))
        image = catalog.add_image(job_id, run.id, record, id=new_id("m"), kind="disk", name="i" * 128)
        verification = catalog.add_verification(job_id, run.id, image.id, report)
        catalog.stop_run(run.id)
    return image.id, verification.id


class ImageFacts(Record):
    """As much of an image.json as pages look at."""

    disks: tuple[dict[str, Any], ...]
    os: str
    boot_modes: tuple[str, ...]


def test_every_page_fits_a_phone_is_readable_in_light_and_dark_and_lets_no_server_do_anything(
    window: Browser, address: str, home: Path, tree: Path
) -> None:
    partition = Partition(
        path="/dev/vda1",
        device="0_1",
        start=1 << 20,
        size_bytes=1 << 33,
        mount_point=f"/{_HOSTILE}",
        used_bytes=1 << 32,
    )
    inventory = Inventory(
        hostname=_HOSTILE,
        os_id=_HOSTILE,
        os_name=_HOSTILE * 4,
        architecture="x86_64",
        disks=(Disk(index=0, path=f"/dev/{'d' * 90}", size_bytes=1 << 34, partitions=(partition,)),),
        failed_units=("u" * 200,),
    )
    with Catalog.open(Settings(home=home)) as catalog:
        source = catalog.add_source(PathConnection(root=f"/srv/{'long' * 60}"), inventory, name="n" * 128)
    job = Client(address).post(
        "/v1/jobs",
        {
            "source_id": source.id,
            "region_id": "local",
            "name": "j" * 128,
            "exclude": [f"/{'x' * 300}"],
            "tags": {"t" * 128: "v" * 128},
            "execution": {"mode": "create_only"},
        },
    )
    image_id, verification_id = image_that_failed(home, job["id"])
    pages = [
        f"/images/{image_id}",
        f"/verifications/{verification_id}",
        "/",
        "/?q=nothing-is-called-so",
        f"/jobs/{job['id']}",
        f"/jobs/{job['id']}/log",
        f"/jobs/{job['id']}/delete",
        "/jobs/new",
        f"/jobs/new?source_id={source.id}",
        "/sources",
        f"/sources/{source.id}",
        "/sources/new",
        "/images",
        "/nothing/is/here",
    ]
    window.complaints()
    try:
        for path in pages:
            for width, dark in ((_PHONE, False), (_TABLET, True), (_NARROW, False), (_WIDE, True)):
                window.wide(width)
                window.dark(dark)
                window.open(path)
                assert window.overflow() == [], f"{path} at {width} pixels"
                assert window.low_contrasts() == [], path
            assert Page(window.source).faults() == [], path
            assert "owned" not in window.driver.title
            assert window.run("return document.querySelectorAll('main script, main img:not(.screen)').length") == 0
    finally:
        window.wide(_WIDE)
        window.dark(False)
    refused = [entry for entry in window.complaints() if "/nothing/is/here" not in entry]
    assert refused == []
