from prefect import flow
from flows.order import Order


@flow(name="sync")
def sync(order: Order) -> None:
    print("hi", order)
