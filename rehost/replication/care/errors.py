"""How the care of a store fails in ways of its own."""

from __future__ import annotations

from rehost.errors import StoreError


class StoreBusy(StoreError):
    """Another `rehost store gc` or `check` is at work in {path}."""

    code = "Store.Busy"
    remedy = "Wait until it has ended; one that died lets go by itself, in a bucket after ten minutes."
    retryable = True
    http_status = 409
    exit_code = 11


class StoreLeaseLost(StoreError):
    """{path} could not be told for minutes that this process is alive, so what it counted on may be gone."""

    code = "Store.LeaseLost"
    remedy = "Start the job again: it goes on from what arrived."
    retryable = True
