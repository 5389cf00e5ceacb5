"""What goes wrong while an image is built, delivered, or proves itself."""

from __future__ import annotations

from rehost.errors.base import RunError


class BuildError(RunError):
    """{detail}"""


class BuildDiskTooSmall(BuildError):
    """The target {what} has {size_bytes} bytes and needs {needed_bytes}."""

    code = "Build.DiskTooSmall"
    remedy = "Give the job a larger disk or partition, or exclude what need not move; nothing is copied again."


class BuildNoKernel(BuildError):
    """No Linux kernel was found under /boot of {source}."""

    code = "Build.NoKernel"
    remedy = "A disk image needs a kernel: install one on the source, or ask for a container image alone."


class BuildNoBootLoader(BuildError):
    """No boot loader could be made for {boot_mode}: {reason}."""

    code = "Build.NoBootLoader"
    remedy = "Run `rehost doctor` on the worker; it names the package that is missing."


class BuildInitramfsLacksDriver(BuildError):
    """The initramfs {initramfs} has no {drivers}: the image would not find its disk."""

    code = "Build.InitramfsLacksDriver"
    remedy = "On the source, add the modules to the initramfs (Debian: /etc/initramfs-tools/modules) and rebuild it."


class BuildUnsupported(BuildError):
    """{what} cannot be built: {reason}."""

    code = "Build.Unsupported"
    remedy = "See the docs for what the builders write."


class BuildTableUnreadable(BuildError):
    """The partition table on the image is not what was written: {reason}."""

    code = "Build.TableUnreadable"
    remedy = "Check the disk that images are written to, then start the job again: nothing is copied again."
    retryable = True


class BuildConversionDiffers(BuildError):
    """The {format} file is not equal to the disk that it was made from: {reason}."""

    code = "Build.ConversionDiffers"
    remedy = "Check the disk that images are written to, then start the job again: nothing is copied again."
    retryable = True


class ContainerEngineAway(BuildError):
    """No Docker engine answers: {reason}."""

    code = "Engine.Unavailable"
    remedy = "Start the engine (`rehost doctor` says how), then start the job again: nothing is copied again."
    retryable = True


class ContainerEngineFailed(BuildError):
    """The Docker engine could not {action}: {reason}."""

    code = "Engine.Failed"
    remedy = "The engine's own log says more; most often its disk is full. Then start the job again."
    retryable = True


class RegistryDenied(BuildError):
    """The registry refused {reference}: {reason}."""

    code = "Registry.Denied"
    remedy = "Check the credentials and the rights on this repository, then start the job again."


class RegistryUnreachable(BuildError):
    """The registry of {reference} does not answer: {reason}."""

    code = "Registry.Unreachable"
    remedy = "Check the registry's address and that it runs, then start the job again."
    retryable = True


class VerificationError(RunError):
    """{detail}"""

    exit_code = 20


class BootNoBootLoader(VerificationError):
    """The firmware or the boot loader found nothing to start: {evidence}"""

    code = "Boot.NoBootLoader"
    remedy = "Build the image again; if it stays so, ask for the other boot mode and keep the console log."


class BootKernelPanic(VerificationError):
    """The kernel panicked: {evidence}"""

    code = "Boot.KernelPanic"
    remedy = "Read the console log above that line; most often the root filesystem or a driver is missing."


class BootNoRoot(VerificationError):
    """The initramfs did not find the root filesystem: {evidence}"""

    code = "Boot.NoRoot"
    remedy = "Compare the root= of the kernel's command line with the image's layout; see the run's report."


class BootEmergencyMode(VerificationError):
    """The guest went into emergency mode: {evidence}"""

    code = "Boot.EmergencyMode"
    remedy = "Most often a mount of /etc/fstab is missing: exclude it there, or include its disk in the job."


class BootUnitsFailed(VerificationError):
    """The guest is up, but failed in: {evidence}"""

    code = "Boot.UnitsFailed"
    remedy = "Look at these units in the verification's report; compare with the source, where they may fail too."


class BootCheckFailed(VerificationError):
    """The guest is up, but did not pass: {evidence}"""

    code = "Boot.CheckFailed"
    remedy = "The verification's report shows source and copy side by side."


class BootTimeout(VerificationError):
    """The guest did not report within {seconds} seconds. Last line: {evidence}"""

    code = "Boot.Timeout"
    remedy = "Look at the screenshot and the console log; if it was only slow, raise boot_timeout_seconds and verify."
    retryable = True


class BootEndedEarly(VerificationError):
    """The guest switched itself off or restarted before it had reported. Last line: {evidence}"""

    code = "Boot.EndedEarly"
    remedy = "Read the end of the console log; a guest that restarts once on its first start must do so on the source."


class ContainerExitedEarly(VerificationError):
    """The container ended with status {status}: {evidence}"""

    code = "Container.ExitedEarly"
    remedy = "Look at its log in the verification's report; give the job another command if no service was found."


class ContainerCheckFailed(VerificationError):
    """The container runs, but did not pass: {evidence}"""

    code = "Container.CheckFailed"
    remedy = "The verification's report names each check; the console log beside it has the services' own words."
