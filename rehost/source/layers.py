"""What a device is made of: the partitions and disks below LVM, mdraid and LUKS."""

from __future__ import annotations

from rehost.source.inventory import Inventory

_LAYERS_FOLLOWED = 8  # LVM on LUKS on mdraid is three


def devices_under(device: str | None, inventory: Inventory) -> set[str]:
    """The device and whatever it is made of, through LVM, mdraid and LUKS."""
    found = {device} if device else set()
    for _ in range(_LAYERS_FOLLOWED):
        found |= {member for layer in inventory.layers if layer.path in found for member in layer.members}
    return found


def disks_under(device: str | None, inventory: Inventory) -> set[int]:
    """The disks that a device lies on, by index."""
    devices = devices_under(device, inventory)
    return {
        disk.index
        for disk in inventory.disks
        if disk.path in devices or any(partition.path in devices for partition in disk.partitions)
    }
