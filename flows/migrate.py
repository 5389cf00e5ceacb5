from prefect import flow
from flows.order import Order


@flow(name="migrate")
def migrate(order: Order) -> None:
    import time

    print("hi", order)
    time.sleep(60)
